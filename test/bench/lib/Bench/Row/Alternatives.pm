# What one would take instead, each in the best form that we could give it, on the same two pieces of work: a backlog, and single
# commits. Each has servers of its own with the same settings; ours, too.
package Bench::Row::Alternatives;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Backlog;
use Bench::Commits;
use Bench::Servers;

use constant STREAM => 'alternative';

sub numbers { return 10 }
sub titles { return { 10 => 'Alternatives' } }

my $insert_row = q{INSERT INTO bench.outbox (event_type, aggregate_type, aggregate_id, payload)
    VALUES ('billing.invoice.paid', 'invoice', $2, $1)};

# name => of the figures; is => in the report
# single => [ the options ] for single commits, if it wants others then
# needs => a file below pg_config's directory of that name, without which it is left out
# prepare => what it wants in the database; prepare_backlog => and before the backlog, if it wants something else then
# relay => [ the program, its options ]
# load => the procedure that commits a backlog; part => the share of it that is enough to know its rate
# statement, then => how a single event is recorded, as src/latency.cpp takes it
# same_program => as the one before: a quick run leaves it out
# drain => the goal: we are at least so many times as fast
sub contenders {
    return (
        {
            name => 'relay', is => 'SKIP LOCKED relay, deletes', drain => 10, relay => [ 'relay.js', '--done', 'delete' ],
            load => 'bench.insert_rows', statement => $insert_row, then => 'NOTIFY bench_outbox',
        },
        {
            name => 'marking_relay', is => 'SKIP LOCKED relay, marks', same_program => 1, relay => [ 'relay.js', '--done', 'mark' ],
            load => 'bench.insert_rows', statement => $insert_row, then => 'NOTIFY bench_outbox',
        },
        {
            name => 'library', is => 'pg-transactional-outbox', relay => ['pg_transactional_outbox.js'],
            single => [ '--listener', 'polling' ], prepare => sub { prepare_library(@_, 'polling') },
            prepare_backlog => sub { prepare_library(@_, 'replication') }, load => 'bench.insert_library_rows', part => 1 / 50,
            statement => q{INSERT INTO public.outbox (id, aggregate_type, aggregate_id, message_type, concurrency, payload, metadata)
                VALUES (gen_random_uuid(), 'invoice', $2, 'billing.invoice.paid', 'parallel', $1, '{"version": 1, "headers": {}}')},
        },
        {
            name => 'pgq', is => 'PgQ', needs => [ sharedir => 'extension/pgq.control' ], relay => ['pgq_relay'],
            prepare => \&prepare_pgq, load => 'bench.insert_pgq_events',
            statement => q{SELECT pgq.insert_event('bench', 'billing.invoice.paid', $1, gen_random_uuid()::text, 'invoice', $2, '1 {}')},
        },
        {
            name => 'wal2json', is => 'wal2json', drain => 4, needs => [ pkglibdir => 'wal2json.so' ],
            relay => [ 'decode_relay', '--format', 'wal2json' ], prepare => sub { slot($_[1], 'wal2json') },
            load => 'bench.insert_rows', statement => $insert_row,
        },
        {
            name => 'pgoutput', is => 'pgoutput', relay => [ 'decode_relay', '--format', 'pgoutput' ],
            prepare => sub {
                $_[1]->execute('CREATE PUBLICATION bench FOR TABLE bench.outbox (event_id, event_type, aggregate_type, aggregate_id, '
                    . q{version, occurred_at, headers, payload) WITH (publish = 'insert')});
                slot($_[1], 'pgoutput');
            },
            load => 'bench.insert_rows', statement => $insert_row,
        },
        {
            name => 'message', is => 'pgoutput with logical messages', drain => 1.5, relay => [ 'decode_relay', '--format', 'message' ],
            prepare => sub {
                $_[1]->execute('CREATE PUBLICATION bench');    # of no table: it must name one
                slot($_[1], 'pgoutput');
            },
            load => 'bench.write_messages', statement => 'SELECT bench.write_message($1, $2)',
        },
    );
}

# before the events: what is in the log before it, it does not read
sub slot {
    my ($servers, $plugin) = @_;
    $servers->value('SELECT slot_name FROM pg_create_logical_replication_slot(?, ?)', 'bench', $plugin);
    return;
}

sub prepare_library {
    my ($ctx, $servers, $contender, $listener) = @_;
    $ctx->command([ 'node', $ctx->peers . '/pg_transactional_outbox.js', places($servers), '--setup', '--listener', $listener ],
        seconds => 60);
    return;
}

# Ticks as often as is sensible: a hundred times a second, each time if there is an event. What pgqd uses counts.
sub prepare_pgq {
    my ($ctx, $servers, $contender) = @_;
    $servers->execute('CREATE EXTENSION pgq', q{SELECT pgq.create_queue('bench')}, q{SELECT pgq.register_consumer('bench', 'relay')},
        map { "SELECT pgq.set_queue_config('bench', '$_', '0')" } qw(ticker_max_lag ticker_idle_period));
    my $file = $servers->dir . '/pgqd.ini';
    open my $ini, '>', $file or die "$file: $!\n";
    print $ini "[pgqd]\nbase_connstr = host=", $servers->host, " user=postgres options='-c synchronous_commit=off'\n",
        "initial_database = postgres\ndatabase_list = postgres\nsyslog = 0\nticker_period = 0.01\n";
    close $ini or die "$file: $!\n";
    $contender->{daemon} = $ctx->spawn([ 'pgqd', '-q', $file ])->{pid};
    return;
}

sub places { my ($servers) = @_; return ('--conninfo', $servers->conninfo, '--redis', $servers->redis_socket, '--stream', STREAM) }

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $add = sub {
        my ($name, $measured) = @_;
        $figures{"${name}_$_"} = $measured->{$_} for grep { defined $measured->{$_} } qw(rate cpu_us p50_us p99_us transaction_p50_us);
    };
    $ctx->say('outbox');
    $add->('outbox', $_) for measure_own($ctx);
    for my $contender (contenders()) {
        next if $ctx->quick && $contender->{same_program};
        if (my $missing = missing($ctx, $contender)) {
            $ctx->say("$contender->{is}: left out, there is no $missing");
            next;
        }
        $ctx->say($contender->{is});
        $add->($contender->{name}, $_) for measure_other($ctx, $contender);
    }
    return \%figures;
}

sub missing {
    my ($ctx, $contender) = @_;
    my ($directory, $file) = @{ $contender->{needs} // return };
    my $path = $ctx->command([ "$ctx->{build}/pg/bin/pg_config", "--$directory" ]) =~ s/\n//r . "/$file";
    return $path unless -e $path;
    my ($program, undef, $format) = @{ $contender->{relay} };
    return "$program for it" if $format && $ctx->command([ $ctx->bin($program), '--help' ]) !~ /$format/;
    return undef;
}

# wal_level as logical decoding wants it, for all of them; and some versions of PostgreSQL want to know which libraries may decode
sub servers {
    my ($ctx, %options) = @_;
    my %settings = (wal_level => 'logical');
    $settings{output_plugin_libraries} = 'pgoutput, wal2json'
        if $ctx->command([ "$ctx->{build}/pg/bin/postgres", '--describe-config' ]) =~ /^output_plugin_libraries\b/m;
    my $servers = $ctx->servers(postgres => \%settings, %options);
    Bench::Commits::prepare($ctx, $servers);
    return $servers;
}

# Single commits first: a server that has just swallowed a backlog has more to do than to carry them.
sub measure_own {
    my ($ctx) = @_;
    my $servers = servers($ctx);
    my $latency = Bench::Commits::measure($ctx, $servers);
    my $drained = Bench::Backlog::drain($ctx, $servers, events => $ctx->events, transport => 'unix');
    $ctx->stop_servers;
    return $latency, { rate => $drained->{rate}, cpu_us => $drained->{postgres_cpu_us} };
}

sub measure_other {
    my ($ctx, $contender) = @_;
    my $servers = servers($ctx, extension => 0);
    $servers->execute(Bench::Context::slurp($ctx->here . '/alternatives.sql'));
    $contender->{prepare}->($ctx, $servers, $contender) if $contender->{prepare};

    my $relay = begin($ctx, $contender, places($servers), @{ $contender->{single} // [] });
    my $latency = $ctx->program('latency', Bench::Commits::options($ctx, $servers, '--stream', STREAM,
        '--statement', $contender->{statement}, $contender->{then} ? ('--then', $contender->{then}) : ()));
    $ctx->finish($relay, signal => 'TERM', seconds => 60);

    $contender->{prepare_backlog}->($ctx, $servers, $contender) if $contender->{prepare_backlog};
    my $events = int($ctx->events * ($contender->{part} // 1));
    Bench::Backlog::load($ctx, $servers, $events, $contender->{load});
    $servers->restart_redis;
    my @daemons = grep { defined } $contender->{daemon};
    my $cpu = $servers->cpu + Bench::Servers::cpu_of(@daemons);
    my $drained = $ctx->finish(begin($ctx, $contender, places($servers), '--events', $events));
    $cpu = $servers->cpu + Bench::Servers::cpu_of(@daemons) - $cpu;
    my $length = $servers->redis('XLEN', STREAM);
    die "$contender->{is} left $length entries of $events events\n" if $length != $events || $drained->{events} != $events;
    check_entry($contender, $servers->redis('XREVRANGE', STREAM, '+', '-', 'COUNT', 1));
    $ctx->stop_servers;
    return $latency, { rate => $drained->{rate}, cpu_us => $drained->{cpu_us} + $cpu / $events * 1e6 };
}

sub begin {
    my ($ctx, $contender, @options) = @_;
    my ($program, @own) = @{ $contender->{relay} };
    return $program =~ /\.js$/ ? $ctx->begin_node($program, @own, @options) : $ctx->begin($program, @own, @options);
}

# It has done the same work.
sub check_entry {
    my ($contender, $entries) = @_;
    my %fields = @{ $entries->[0][1] };
    my $found = join ' ', map { "$_=" . ($fields{$_} // '?') } sort keys %fields;
    my @wanted = qw(aggregate_id aggregate_type event_id event_type headers occurred_at payload version);
    die "$contender->{is} left an entry with other fields: $found\n" if join(' ', sort keys %fields) ne "@wanted";
    return if $fields{event_type} eq 'billing.invoice.paid' && $fields{aggregate_type} eq 'invoice' && $fields{aggregate_id} =~ /^i\d+$/
        && $fields{event_id} =~ /^[0-9a-f-]{36}$/ && $fields{version} eq '1' && $fields{headers} eq '{}'
        && $fields{occurred_at} =~ /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/ && length $fields{payload} > 190;
    die "$contender->{is} left an entry with other values: $found\n";
}

sub lines {
    my @lines;
    for my $part (
        { of => 'rate', what => 'drain', unit => 'events/s' },
        { of => 'p50_us', what => 'from COMMIT to the reader, median', unit => 'ms', scale => 1 / 1000, at_most => 1 },
        { of => 'p99_us', what => 'from COMMIT to the reader, 99 of 100', unit => 'ms', scale => 1 / 1000, at_most => 1 },
        { of => 'cpu_us', what => 'CPU of relay and PostgreSQL, drain', unit => 'µs an event' },
        { of => 'transaction_p50_us', what => 'the transaction itself, median', unit => 'ms', scale => 1 / 1000 },
    ) {
        my ($of, %line) = (delete $part->{of}, %$part);
        delete $line{of};
        for my $contender (contenders()) {
            $line{at_least} = $of eq 'rate' ? $contender->{drain} : undef;
            push @lines, { %line, figure => "outbox_$of", reference => "$contender->{name}_$of", reference_is => $contender->{is} };
        }
    }
    return @lines;
}

sub notes {
    return { 10 => <<'END' };
Everything runs with `wal_level = logical`, on servers of its own, PostgreSQL and Redis through unix sockets. Backlogs are committed a
hundred events at a time, by two sessions at once, before the relay is started; the time goes from its first statement to Redis' last
reply. CPU is that of the relay and of every process of PostgreSQL; for outbox the relay is one of those. Latencies are measured as in
row 2. An alternative appends with `XADD … *`, the same eight fields; its commits need not be durable at once, as a lost one is
events sent again. What comes twice after a crash is theirs to live with. Redis is what ends the comparison of drains: bare `XADD`s from
memory (row 1) are themselves no more than about eight times the relay that deletes, and three times wal2json.

- **SKIP LOCKED relay** ([`relay.js`](peers/relay.js); node, pg 8.23.1, ioredis 6.0.0): `DELETE` (or `UPDATE … SET published_at`) of a
  thousand rows that it takes `FOR UPDATE SKIP LOCKED`, one pipeline of `XADD`s, `COMMIT`; two connections in turn, woken by `NOTIFY`, polling each
  second. Batches of 500, 2,000 and 5,000, and one connection, were no faster.
- **pg-transactional-outbox** 0.5.7 ([`pg_transactional_outbox.js`](peers/pg_transactional_outbox.js)): the replication listener, its
  protections against poisonous messages off as its README has it for an outbox, 20 messages at once without an order. 5, 10 and 40
  at once, its ordered modes, and its polling listener were slower. It drains a fiftieth of the events. For single commits it is the polling
  listener, each 10 ms, because the other one loses events (8 of 620 in a trial): it reads a message in the log, does not find its row, as
  the transaction is not visible to others yet, and drops the message with a warning.
- **PgQ** 3.5 ([`pgq_relay.cpp`](src/pgq_relay.cpp), pgqd): a tick each 10 ms if there are events (`ticker_period = 0.01`,
  `ticker_max_lag = 0`), the consumer looks for a batch each 5 ms; it reads a batch while Redis appends the one before.
- **wal2json** (format version 2, parsed by simdjson), **pgoutput** (the columns that are needed, as text), **pgoutput with logical messages**
  ([`decode_relay.cpp`](src/decode_relay.cpp)): a slot that was created before the events; up to 10,000 entries in flight, a position is
  confirmed when Redis has everything before it. A logical message is `pg_logical_emit_message(true, …)`: nothing is stored in a table, so
  there is no index, no vacuum, and no way to look at an event or to send it again.
END
}

sub bars {
    my @contenders = contenders();
    return {
        drain => [ map { [ $_->{is}, "$_->{name}_rate", 'others' ] } @contenders ],
        latency => [ map { [ "$_->{is}, median", "$_->{name}_p50_us", 'others' ] } @contenders ],
    };
}

1;
