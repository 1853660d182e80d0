# outbox: `make && make install` builds the extension against any PG_CONFIG; `make demo`, `make check`, `make torture`
# and `make bench` set up all they need.

ifneq ($(filter demo check check-versions check-fuzz check-sanitizers torture torture-mutants bench,$(MAKECMDGOALS)),)

# With the set-up: these install what is missing, build, install the extension and run. Kept from PGXS, whose own `check`
# only says that it is not supported.
demo check check-versions check-fuzz check-sanitizers torture torture-mutants bench:
	@scripts/$@

.PHONY: demo check check-versions check-fuzz check-sanitizers torture torture-mutants bench

else

EXTENSION = extension/outbox
MODULE_big = outbox
RELEASE = 1.1
# What can be made again in place: an update from any version ends with it.
SQL = $(addprefix sql/,version.sql emit.sql event.sql delayed.sql operate.sql dead_letter.sql verify.sql consumer.sql retention.sql \
    stat.sql confirm.sql sink.sql replay.sql comments.sql privileges.sql)
DATA_built = sql/outbox--$(RELEASE).sql sql/outbox--1.0--$(RELEASE).sql
DATA = sql/outbox--1.0.sql
OBJS = $(patsubst %.cpp,%.o,$(wildcard common/*.cpp extension/*.cpp bgworker/*.cpp))
PRIVATE_HEADERS = $(wildcard common/*.hpp extension/*.hpp bgworker/*.hpp)

# -Wno-register: PostgreSQL 15's headers; -Wno-volatile: HOLD_INTERRUPTS; -Wno-missing-field-initializers: 18's magic block
PG_CXXFLAGS = -std=c++20 -fvisibility=hidden -Wall -Wextra -Wno-register -Wno-volatile -Wno-missing-field-initializers
PG_CPPFLAGS = -I$(srcdir)
SHLIB_LINK = -lstdc++ -lhiredis -lcares -lssl -lcrypto
EXTRA_CLEAN = results tmp_check output_iso log

srcdir ?= .
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(PGXS),)
$(error PostgreSQL's build system was not found: run scripts/setup, or set PG_CONFIG)
endif
# the bitcode step ignores PG_CXXFLAGS
override with_llvm = no
include $(PGXS)

# PGXS knows no header dependencies
$(OBJS): $(PRIVATE_HEADERS)

# A released version has its install script as it was, and the table changes from it to the next one in sql/update/.
sql/outbox--$(RELEASE).sql: sql/install.sql sql/storage.sql $(SQL)
	cat $^ > $@

sql/outbox--1.0--$(RELEASE).sql: sql/update/1.0-tables.sql $(SQL) sql/update/1.0-drops.sql
	cat $^ > $@

endif
