# The harness of the TAP tests: PostgreSQL::Test::Cluster with outbox and a real Redis, a load whose truth is known, and
# the checker that compares it with the streams. One page of what there is; a test is a sentence made of these.
#
#   use OutboxTest;                       # and strict, warnings, Test::More
#   my $redis = OutboxTest::Redis->new(aof => 'always');
#   my $node  = new_node(redis => $redis);
#   my $load  = start_load($node, clients => 4);
#   poll_until(sub { $redis->published > 500 }, 'some events are published');
#   kill_worker($node);
#   $load->stop;
#   wait_settled($node);
#   ok_streams($node, $redis, 'a killed worker loses and doubles nothing');
#   done_testing();
#
# Server
#   new_node(%options)         a started PostgreSQL::Test::Cluster with the extension and the load's tables; fsync is on and
#                              the server restarts after a crash. Options:
#       redis => $r | url => $u    where outbox.redis_url points (a proxy: url => $proxy->url)
#       name => 'main'             unique in a test
#       conf => "a = b\n..."       more for postgresql.conf, last
#       streaming => 1             may have standbys (init_from_backup is Cluster's own)
#       preload => 0, extension => 0, load => 0, start => 0    leave that out
#   prepare_database($node, $db)   CREATE EXTENSION and the load's tables in another database
#   worker_pid($node, $db, $sink_id)   pid of the worker of a sink (1: "default"), or undef
#   wait_for_worker($node, $db, $sink_id)    until there is one; its pid
#   kill_worker($node, $db, $signal, $sink_id, $pid)   KILL unless told otherwise; the pid that it had. It asks for the pid, which
#                              takes a moment, unless it is given
#   stop_redis_in_batch($node, $redis, $emit)    $redis->sigstop, when the worker has recorded the tick of what $emit->() commits
#                              and before it has sent any of it: it waits for Redis' answer
#   crash($node)               kill -9 of the postmaster and every child of it, leftovers removed: ready for $node->start
#   wait_recovered($node, $pid)    after kill -9 of one process of the server, until it has noticed and restarted itself: before that
#                              a query may still succeed, and the next one be cut off
#   stat_sink($node, $db, $sink)   the row of outbox.stat_sink as { column => value }, of "default" unless told otherwise
#   flush($node, $db, $timeout, $sink)    outbox.flush(): true when all is published
#   pause_sink($node, $db, $sink)    outbox.pause(), and until its worker sends nothing any more
#   wait_settled($node, $db)   end what the load left prepared, then flush; call it after $load->stop
#
# Load: transactions of known outcome, see "the load" below. truth(event_id, aggregate_id, version, topic, digest)
#   start_load($node, %options)    in the background, through crashes and restarts of the server, until ->stop. Options:
#       clients => 4, aggregates => 40, db => 'postgres'
#       rate => 200                transactions a second, else as fast as it goes
#       transactions => 100        per client, else until ->stop
#       restart => 0               let the first error end it, also a crash of the server
#       weights => { commit => 55, multi => 10, savepoint => 10, rollback => 10, async => 10, prepared => 5 }
#       large => 1                 percent of payloads of up to 100 kB
#   $load->stop                ends the clients; what was not committed is not in truth
#   $load->wait                until its transactions are done, for two minutes at most; not 0 if it failed
#   end_prepared($node, $db, 'load-')   end what a load that is over left prepared: its row locks would stop the next one
#   run_load($node, %options)  the same in the foreground: transactions => 100 unless told otherwise
#   emit_some($node, $n, $db)  $n committed events in one transaction
#   committed($node, $db)      how many events are in truth
#
# Checking
#   check_streams($node, $redis, %options)    { committed, published, lost, ghost, duplicated, out_of_order, corrupt,
#                              unordered_ids, details => [...] }; db => 'postgres'; ignore => sub { my ($key, $id, $fields) }
#                              returns true for an entry that somebody else put there; disturbed => key of the stream where
#                              somebody else does, and whose order is not promised therefore
#   ok_streams($node, $redis, $name, %options)    one assertion: committed is not 0 and all but published is 0
#   poll_until($sub, $what, $timeout)    calls $sub until it is true (an exception counts as not yet); its value, or dies
#                              "timed out waiting until $what"
#   wait_for_streams($redis, $n)    until at least $n entries are in the streams
#   log_has($node, $regex, $offset)    true if the server log has it (-s $node->logfile beforehand is an offset)
#
# OutboxTest::Redis->new(name, aof => no|everysec|always, conf => [...], auth => [user, password], start => 0, sentinel => 1)
#   url($db) tcp_url($db) pid port socket dir logfile; start stop(save => 1) kill9 restart(keep_data => 1) wipe
#   sigstop sigcont; cmd(@words) cmds([...], ...) cli('SET a b'); streams entries($key) published
# OutboxTest::Proxy->new(to => $redis, tcp => 1)
#   url($db) tcp_url($db) stats wait_for_cut($n) stop; pass blackhole refuse dribble($bytes)
#   cut swallow($bytes) cut_request($bytes) inject($bytes)
#
# Whatever a test started is ended when it ends, also when it dies; nothing is ended that it did not start.
package OutboxTest;

use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use Exporter qw(import);
use POSIX qw(setpgid WNOHANG);
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use OutboxTest::Proxy;
use OutboxTest::Redis;
use OutboxTest::Session;

our @EXPORT = qw(
    new_node prepare_database worker_pid wait_for_worker kill_worker stop_redis_in_batch crash stat_sink flush pause_sink
    wait_settled start_load run_load emit_some committed end_prepared
    check_streams ok_streams poll_until wait_for_streams log_has wait_recovered
);

# servers

sub new_node {
    my (%options) = @_;
    my $node = PostgreSQL::Test::Cluster->new($options{name} // 'main');
    $node->init(allows_streaming => $options{streaming});
    my $url = $options{url} // ($options{redis} ? $options{redis}->url : 'unix:///nonexistent/redis.sock');
    my $outbox = exists $options{preload} && !$options{preload} ? '' : <<"CONF";
shared_preload_libraries = 'outbox'
outbox.redis_url = '$url'
outbox.retry_min = '50ms'
outbox.retry_max = '500ms'
outbox.connect_timeout = '2s'
outbox.response_timeout = '2s'
outbox.lease_timeout = '2s'
CONF
    # Cluster's own defaults are for tests that crash nothing
    $node->append_conf('postgresql.conf', <<"CONF" . $outbox . ($options{conf} // ''));
fsync = on
restart_after_crash = on
log_statement = none
max_prepared_transactions = 20
max_connections = 60
shared_buffers = '32MB'
autovacuum_naptime = '5s'
CONF
    if (!exists $options{start} || $options{start}) {
        $node->start;
        prepare_database($node, 'postgres', %options);
    }
    return $node;
}

sub prepare_database {
    my ($node, $db, %options) = @_;
    $node->safe_psql($db, 'CREATE EXTENSION outbox') unless exists $options{extension} && !$options{extension};
    $node->safe_psql($db, load_sql()) unless exists $options{load} && !$options{load};
    return;
}

sub worker_pid {
    my ($node, $db, $sink_id) = @_;
    my $pid = $node->safe_psql($db // 'postgres',
        'SELECT pid FROM outbox.worker_state() WHERE pid <> 0 AND sink_id = ' . ($sink_id // 1));
    return length $pid ? $pid : undef;
}

sub wait_for_worker {
    my ($node, $db, $sink_id) = @_;
    return poll_until(sub { worker_pid($node, $db, $sink_id) }, 'there is a worker');
}

sub kill_worker {
    my ($node, $db, $signal, $sink_id, $pid) = @_;
    # between asking and killing it may have gone and its pid be somebody else's
    my $is_ours = sub { my ($there) = @_; $there && parent_of($there) == postmaster_pid($node) && $there };
    $pid = $pid ? $is_ours->($pid) : poll_until(sub { $is_ours->(worker_pid($node, $db, $sink_id)) }, 'there is a worker of this server');
    die 'the worker is gone' unless $pid;
    kill $signal // 'KILL', $pid;
    return $pid;
}

sub wait_recovered {
    my ($node, $pid) = @_;
    # its entry is in shared memory until that is made anew
    poll_until(sub { $node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0' }, 'the server has recovered');
    return;
}

# A worker may find out that Redis stands still before it has anything to send, as it renews its lease all the time, and then it
# records no tick. So Redis stops while the worker waits for a lock on the table of ticks.
sub stop_redis_in_batch {
    my ($node, $redis, $emit) = @_;
    poll_until(sub { flush($node) }, 'the worker works');
    my $pid = wait_for_worker($node);
    my $count = 'SELECT count(*) FROM outbox.tick';
    my $ticks = $node->safe_psql('postgres', $count);
    my $hold = OutboxTest::Session->new($node);
    $hold->say('BEGIN; LOCK TABLE ' . join(', ', map { "outbox.tick_$_" } 0 .. 7) . ' IN SHARE MODE;');
    $emit->();
    poll_until(
        sub { $node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted AND locktype = 'relation'") },
        'the worker is about to record a tick');
    $redis->sigstop;
    $hold->say('COMMIT;');
    $hold->end;
    poll_until(sub { $node->safe_psql('postgres', $count) > $ticks }, 'it has recorded it');
    return;
}

sub postmaster_pid {
    my ($node) = @_;
    my ($pid) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
    return $pid;
}

sub parent_of {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 0;
    my $line = readline($file) // return 0;
    return $line =~ /\) \S (\d+)/ ? $1 : 0;
}

# A power cut, but for what the kernel had already been given. Pids are used again soon, on small machines at once: a
# lock file that names a living process keeps the server from starting.
sub crash {
    my ($node) = @_;
    my $postmaster = postmaster_pid($node);
    kill 'STOP', $postmaster;    # or it would start new children meanwhile
    poll_until(sub { OutboxTest::Redis::stands_still($postmaster) }, 'the postmaster starts no more children');
    my @children = grep { parent_of($_) == $postmaster } map { m{/(\d+)$} } glob '/proc/[0-9]*';
    kill 'KILL', $postmaster, @children;
    poll_until(sub { !grep { alive($_) } $postmaster, @children }, 'the killed server is gone');
    unlink $node->data_dir . '/postmaster.pid', glob $node->host . '/.s.PGSQL.' . $node->port . '*';
    $node->_update_pid(0);
    return;
}

# A zombie is dead: its parent may be a process that never waits for it.
sub alive {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 0;
    my $line = readline($file) // return 0;
    return $line !~ /\) [ZX] /;
}

sub stat_sink {
    my ($node, $db, $sink) = @_;
    my %row;
    my $lines = $node->safe_psql($db // 'postgres',
        'SELECT key, value FROM outbox.stat_sink s, LATERAL jsonb_each_text(to_jsonb(s)) WHERE sink = '
            . "'" . ($sink // 'default') . "'");
    for my $line (split /\n/, $lines) {
        my ($column, $value) = split /\|/, $line, 2;
        $row{$column} = $value;
    }
    return \%row;
}

sub flush {
    my ($node, $db, $timeout, $sink) = @_;
    return $node->safe_psql($db // 'postgres',
        "SELECT outbox.flush('" . ($timeout // '30 s') . "', '" . ($sink // 'default') . "')") eq 't';
}

# stat_sink says what is wanted of a sink as soon as that is committed; its worker may still be sending then.
sub pause_sink {
    my ($node, $db, $sink) = @_;
    $db //= 'postgres';
    $sink //= 'default';
    $node->safe_psql($db, "SELECT outbox.pause('$sink')");
    poll_until(
        sub {
            $node->safe_psql($db,
                "SELECT w.state FROM outbox.worker_state() w JOIN outbox.sink s ON s.id = w.sink_id WHERE s.name = '$sink'") eq 'paused';
        },
        "sink $sink is paused");
    return;
}

sub wait_settled {
    my ($node, $db) = @_;
    $db //= 'postgres';
    # A backend whose client is gone may still wait for the row lock of a prepared transaction, so those end first, and again.
    poll_until(
        sub {
            end_prepared($node, $db, 'load-');
            $node->safe_psql($db, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'load')") eq 't';
        },
        'the clients of the load are gone');
    end_prepared($node, $db, 'load-');
    poll_until(sub { flush($node, $db) }, 'everything is published');
    return;
}

# Transactions of clients that were stopped between PREPARE and COMMIT PREPARED. Either end is a right one; without any,
# their row locks would stop the load for good. Those of another database can only be ended there.
sub end_prepared {
    my ($node, $db, $prefix) = @_;
    my $left = $node->safe_psql($db,
        "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE '$prefix%' AND database = current_database() ORDER BY 1");
    my $n = 0;
    $node->safe_psql($db, ($n++ % 2 ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$_'") for split /\n/, $left;
    return;
}

# the load
#
# Each transaction locks its aggregates' rows, and the number it finds there + 1 goes into the event: so the order of an
# aggregate's events is known without looking at any id, and they are 1, 2, 3, ... without a gap. The row of truth is
# written in the same transaction: what is in truth after all is quiet was committed, and nothing else was.

sub load_sql {
    return <<'SQL';
CREATE TABLE truth (
    event_id uuid PRIMARY KEY,
    aggregate_id text NOT NULL,
    version bigint NOT NULL,
    topic text NOT NULL,
    digest text NOT NULL
);
CREATE SCHEMA load;
CREATE TABLE load.aggregate (id int PRIMARY KEY, version bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);

-- n events of one aggregate; the payload keeps its odd blanks, line ends and characters outside the BMP
CREATE FUNCTION load.step(aggregate int, n int = 1, large bool = false) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    type text := (ARRAY['billing.invoice.paid', 'identity.user.created', 'wallet.transfer.done', 'shop.order.placed'])
        [aggregate % 4 + 1];
    routed text := CASE WHEN aggregate % 5 = 0 THEN 'audit' END;
    headers jsonb := CASE WHEN aggregate % 3 = 0 THEN jsonb_build_object('traceparent', md5(aggregate::text)) END;
    size int := CASE WHEN large THEN 1 + random() * 3000 ELSE exp(random() * 4) END;
    current bigint;
    payload text;
    id uuid;
BEGIN
    INSERT INTO load.aggregate AS a (id, version) VALUES (aggregate, n)
        ON CONFLICT ON CONSTRAINT aggregate_pkey DO UPDATE SET version = a.version + n
        RETURNING a.version - n INTO current;
    FOR i IN 1..n LOOP
        current := current + 1;
        payload := format(E'{"k": %s,\r\n\t"note" :"%s \u00fc \U0001F600 \\u00e9\\n",  "n":1.50}', current,
            repeat(md5(random()::text), size));
        id := outbox.emit(type, payload, aggregate_id => 'a' || aggregate, aggregate_type => 'load',
            version => 1 + aggregate % 2, headers => headers, topic => routed);
        INSERT INTO truth VALUES (id, 'a' || aggregate, current, COALESCE(routed, split_part(type, '.', 1)),
            encode(sha256(convert_to(concat_ws(E'\n', type, 'load', 'a' || aggregate, 1 + aggregate % 2,
                COALESCE(headers::text, ''), payload), 'UTF8')), 'hex'));
    END LOOP;
END
$$;
SQL
}

my %script = (
    commit => "SELECT load.step(:a, 1, :large);\n",
    multi => "BEGIN;\nSELECT load.step(:low, 2, :large);\nSELECT load.step(:high, 1);\nCOMMIT;\n",
    savepoint => "BEGIN;\nSELECT load.step(:a, 1);\nSAVEPOINT s;\nSELECT load.step(:a, 2, :large);\n"
        . "ROLLBACK TO s;\nSELECT load.step(:a, 1);\nCOMMIT;\n",
    rollback => "BEGIN;\nSELECT load.step(:a, 3, :large);\nROLLBACK;\n",
    async => "BEGIN;\nSET LOCAL synchronous_commit = off;\nSELECT load.step(:a, 1, :large);\nCOMMIT;\n",
    prepared => "BEGIN;\nSELECT load.step(:a, 1);\nPREPARE TRANSACTION 'load-:load-:client_id-:gid';\n\\if :even\n"
        . "COMMIT PREPARED 'load-:load-:client_id-:gid';\n\\else\nROLLBACK PREPARED 'load-:load-:client_id-:gid';\n\\endif\n",
);
my $loads = 0;

sub start_load {
    my ($node, %options) = @_;
    my %weights = (commit => 55, multi => 10, savepoint => 10, rollback => 10, async => 10, prepared => 5);
    %weights = %{ $options{weights} } if $options{weights};
    my $aggregates = $options{aggregates} // 40;
    my $large = $options{large} // 1;
    my $db = $options{db} // 'postgres';
    my $dir = PostgreSQL::Test::Utils::tempdir();
    $loads++;

    my @files;
    for my $name (sort keys %weights) {
        next unless $weights{$name};
        # two aggregates are locked in the order of their ids: a deadlock would only be a slower rollback
        PostgreSQL::Test::Utils::append_to_file("$dir/$name.sql", <<"SQL" . $script{$name});
\\set a random_zipfian(1, $aggregates, 1.2)
\\set low random(1, $aggregates)
\\set high :low + random(1, 5)
\\set large random(1, 100) <= $large
\\set gid random(1, 1000000000)
\\set even random(0, 1) = 0
\\set load $loads
SQL
        push @files, '-f', "$dir/$name.sql\@$weights{$name}";
    }
    my @command = ('pgbench', '-n', '-c', $options{clients} // 4, @files);
    push @command, '-R', $options{rate} if $options{rate};
    push @command, $options{transactions} ? ('-t', $options{transactions}) : ('-T', 3600);
    push @command, $db;
    $options{restart} //= 1;

    # A child that starts pgbench again whenever the server's crash has ended it; both are a process group, so that they
    # can be ended as one.
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        setpgid(0, 0);
        @ENV{qw(PGHOST PGPORT PGAPPNAME)} = ($node->host, $node->port, 'load');
        while (1) {
            my $status = run_while_parent_lives(@command);
            POSIX::_exit($status ? 1 : 0) if $status == 0 || !$options{restart};
            # until the server is back
            sleep 0.05 until eval { end_prepared($node, $db, "load-$loads-"); 1 };
        }
    }
    setpgid($pid, $pid);
    return OutboxTest::Load->new($pid);
}

# As system(). A test that was killed ends nothing: what it left would run on and keep its output open, for which the harness waits.
sub run_while_parent_lives {
    my (@command) = @_;
    my $parent = getppid;
    my $pid = fork // die "fork: $!";
    if ($pid == 0) { exec @command or POSIX::_exit(127) }
    while (waitpid($pid, WNOHANG) == 0) {
        kill 'KILL', -$$ if getppid != $parent;
        sleep 0.05;
    }
    return $?;
}

sub run_load {
    my ($node, %options) = @_;
    my $status = start_load($node, transactions => 100, %options, restart => 0)->wait;
    die "pgbench failed, see the log\n" if $status;
    return;
}

sub emit_some {
    my ($node, $n, $db) = @_;
    # in the order in which a load locks them, too
    $node->safe_psql($db // 'postgres', "SELECT load.step((i - 1) % 20 + 1) FROM generate_series(1, $n) i");
    return;
}

sub committed {
    my ($node, $db) = @_;
    return $node->safe_psql($db // 'postgres', 'SELECT count(*) FROM truth');
}

# checking

my @field_names = qw(event_id event_type aggregate_type aggregate_id version occurred_at headers payload);

# Looks at everything there is, on both sides. An entry is
#   ghost         its event was never committed         duplicated    a further entry of an event that is there already
#   corrupt       a field is not what was emitted, or it is in another event's stream
#   out_of_order  its aggregate has a later event before it, by position over all streams
#   unordered_ids its position occurs twice, or is not above the one before it
# and an event is lost when it has no entry.
sub check_streams {
    my ($node, $redis, %options) = @_;
    my %found = map { $_ => 0 } qw(committed published lost ghost duplicated out_of_order corrupt unordered_ids);
    my %details;
    my $blame = sub {
        my ($what, $text) = @_;
        $found{$what}++;
        push @{ $details{$what} }, "$what: $text" if @{ $details{$what} // [] } < 5;
    };

    my %truth;
    my $rows = $node->safe_psql($options{db} // 'postgres', 'SELECT event_id, aggregate_id, version, topic, digest FROM truth');
    for my $row (split /\n/, $rows) {
        my ($event_id, @rest) = split /\|/, $row;
        $truth{$event_id} = \@rest;
        $found{committed}++;
    }

    my (%seen, %position, @order);
    for my $key ($redis->streams) {
        my $last = [ 0, 0 ];
        for my $entry ($redis->entries($key)) {
            my ($id, $fields, $names) = @$entry;
            next if $options{ignore} && $options{ignore}->($key, $id, $fields);
            $found{published}++;
            my $at = [ split /-/, $id ];
            my $event_id = $fields->{event_id} // '';
            my $what = "$id in $key, event $event_id";

            $blame->('unordered_ids', "$what, not above the one before it") if above($last, $at) >= 0;
            $last = $at;
            $blame->('unordered_ids', "$what, as in $position{$id}") if $position{$id};
            $position{$id} //= $key;

            my $true = $truth{$event_id};
            if (!$true) {
                $blame->('ghost', $what);
                next;
            }
            if ($seen{$event_id}) {
                $blame->('duplicated', "$what, as $seen{$event_id}");
                next;
            }
            $seen{$event_id} = $id;
            my ($aggregate_id, $version, $topic, $digest) = @$true;
            my $wrong =
                  "@$names" ne "@field_names" ? "fields @$names"
                : $key ne "outbox:{$topic}" ? "belongs to topic $topic"
                : $fields->{occurred_at} !~ /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/ ? "occurred_at $fields->{occurred_at}"
                : sha256_hex(join "\n", @$fields{qw(event_type aggregate_type aggregate_id version headers payload)}) ne $digest
                ? 'not as emitted: ' . substr join(' | ', map { $fields->{$_} } @$names), 0, 400
                : undef;
            $blame->('corrupt', "$what: $wrong") if defined $wrong;
            push @order, [ $at, $aggregate_id, $version, $what ];
        }
    }
    for my $event_id (sort keys %truth) {
        next if $seen{$event_id};
        my ($aggregate_id, $version, $topic) = @{ $truth{$event_id} };
        $blame->('lost', "event $event_id, version $version of $aggregate_id, topic $topic");
    }
    my %latest;
    for my $entry (sort { above($a->[0], $b->[0]) } @order) {
        my ($at, $aggregate_id, $version, $what) = @$entry;
        my $latest = $latest{$aggregate_id} // 0;
        $blame->('out_of_order', "$what: version $version of $aggregate_id after $latest")
            if $version < $latest && !($options{disturbed} && index($what, " in $options{disturbed}") >= 0);
        $latest{$aggregate_id} = $version if $version > $latest;
    }

    # The oracle itself: versions are counted under a lock, so a gap in truth means that the database lost a commit, or
    # that the load is wrong. Then no other number means anything.
    my %versions;
    push @{ $versions{ $_->[0] } }, $_->[1] for values %truth;
    for my $aggregate_id (keys %versions) {
        my @sorted = sort { $a <=> $b } @{ $versions{$aggregate_id} };
        die "truth has a gap: $aggregate_id has " . @sorted . " events up to version $sorted[-1]" if $sorted[-1] != @sorted;
    }

    $found{details} = [ map { @{ $details{$_} } } sort keys %details ];
    return \%found;
}

# <=> of two positions
sub above { return $_[0][0] <=> $_[1][0] || $_[0][1] <=> $_[1][1] }

sub ok_streams {
    my ($node, $redis, $name, %options) = @_;
    my $found = check_streams($node, $redis, %options);
    my @bad = grep { $found->{$_} } qw(lost ghost duplicated out_of_order corrupt unordered_ids);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $good = ok($found->{committed} > 0 && !@bad, $name);
    if (!$good) {
        diag(join ', ', map { "$_ $found->{$_}" } 'committed', 'published', @bad);
        diag($_) for @{ $found->{details} };
    }
    return $good;
}

sub poll_until {
    my ($sub, $what, $timeout) = @_;
    my $until = time + ($timeout // $PostgreSQL::Test::Utils::timeout_default);
    my $pause = 0.005;
    while (1) {
        my $value = eval { $sub->() };
        return $value if $value;
        die "timed out waiting until $what" . ($@ ? ": $@" : "\n") if time > $until;
        sleep $pause;
        $pause = $pause * 1.5 if $pause < 0.1;
    }
}

sub wait_for_streams {
    my ($redis, $n, $timeout) = @_;
    return poll_until(sub { $redis->published >= $n }, "$n entries are in the streams", $timeout);
}

sub log_has {
    my ($node, $regex, $offset) = @_;
    return slurp_file($node->logfile, $offset // 0) =~ $regex;
}

package OutboxTest::Load;

use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my @running;
my $owner = $$;

sub new {
    my ($class, $pid) = @_;
    my $self = bless { pid => $pid }, $class;
    push @running, $self;
    return $self;
}

sub stop {
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    kill 'KILL', -$pid;
    waitpid $pid, 0;
    return;
}

sub running {
    my ($self) = @_;
    return 0 unless $self->{pid};
    return 1 if waitpid($self->{pid}, WNOHANG) == 0;
    $self->{status} = $?;
    delete $self->{pid};
    return 0;
}

sub wait {
    my ($self) = @_;
    my $until = time + 120;
    while ($self->running) {
        if (time > $until) {
            $self->stop;
            die "the load has not come to its end\n";
        }
        sleep 0.01;
    }
    return $self->{status};
}

END {
    my $status = $?;
    if ($$ == $owner) { $_->stop for @running }
    $? = $status;
}

1;
