# Redis loses what it has confirmed. The worker notices before it appends anything new, and appends again exactly what is
# missing, with the same IDs. What somebody took out of a stream on purpose stays out.
use strict;
use warnings;
use OutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $rounds = $ENV{ROUNDS} // 3;
my @owned;
my $owner = $$;
my %weights = (commit => 60, multi => 15, savepoint => 5, rollback => 10, async => 10);

sub set_up {
    my ($name, %options) = @_;
    my $redis = OutboxTest::Redis->new(conf => [ 'repl-diskless-sync-delay 0' ], %options);
    return ($redis, new_node(name => $name, redis => $redis));
}

# Everything is there, and everything once. flush() says nothing of a loss that the worker does not know of yet.
sub settled {
    my ($node, $redis, $name, %options) = @_;
    wait_settled($node);
    my $began = time;
    eval { poll_until(sub { !check_streams($node, $redis, %options)->{lost} }, 'nothing is missing') };
    note sprintf '%s: after %.1f s', $name, time - $began;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok_streams($node, $redis, $name, %options);
}

# A consumer that creates its groups, and with them the streams, as soon as it misses them.
sub start_consumer {
    my ($redis) = @_;
    my @keys = map { "outbox:{$_}" } qw(audit billing identity shop wallet);
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        my $own = bless {%$redis}, 'OutboxTest::Redis';
        delete $own->{connection};
        while (getppid == $owner) {
            my @replies = eval { $own->cmds([ 'XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', 100, 'STREAMS', @keys, ('>') x @keys ]) };
            eval { $own->cmds(map { [ 'XGROUP', 'CREATE', $_, 'g', 0, 'MKSTREAM' ] } @keys) }
                if !@replies || ref $replies[0] eq 'OutboxTest::Redis::Error';
        }
        POSIX::_exit(0);
    }
    push @owned, $pid;
    return $pid;
}

sub stop_consumer { kill 'KILL', $_[0]; waitpid $_[0], 0; @owned = grep { $_ != $_[0] } @owned }

END {
    my $status = $?;
    if ($$ == $owner) { kill 'KILL', @owned; waitpid $_, 0 for @owned }
    $? = $status;
}

sub marker_key { return 'outbox:sink:' . $_[0]->safe_psql('postgres', 'SELECT uuid FROM outbox.sink') }

# Redis is killed and keeps its data

{
    my ($redis, $node) = set_up('durable', aof => 'always');
    my $load = start_load($node, clients => 2, rate => 200, weights => \%weights);
    for my $n (1 .. $rounds) {
        my $published = $redis->published;
        emit_some($node, 1000);
        poll_until(sub { $redis->published > $published }, 'the worker is at work');
        sleep rand 0.02;
        $redis->kill9;
        emit_some($node, 100);
        $redis->start;
        poll_until(sub { $redis->published > $published + 1000 }, 'events are published again');
    }
    $load->stop;
    settled($node, $redis, 'a Redis that is killed and keeps its data');
    is(stat_sink($node)->{healed}, 0, 'there was nothing to heal');

    # trimmed and deleted entries stay so, whoever starts again
    my %gone;
    my @keys = $redis->streams;
    for my $key (@keys) {
        my @entries = $redis->entries($key);
        if ($key =~ /audit|shop/) {
            $redis->cmd('XTRIM', $key, 'MAXLEN', 0);
        }
        else {
            # some in the middle, and the last ones
            @entries = (@entries[ 3 .. 9 ], @entries[ -5 .. -1 ]);
            $redis->cmd('XDEL', $key, map { $_->[0] } @entries);
        }
        $gone{ $_->[1]{event_id} } = 1 for @entries;
    }
    my $left = $redis->published;
    # lost is what was taken out, and nothing but that
    my $bad = sub {
        my $found = check_streams($node, $redis);
        return join ' ', map { "$_=$found->{$_}" } grep { $found->{$_} } qw(lost ghost duplicated out_of_order corrupt unordered_ids);
    };
    my $only = 'lost=' . keys %gone;
    is($bad->(), $only, 'entries were taken out of the streams');
    my $pid = kill_worker($node, 'postgres', 'TERM');
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    ok(flush($node), 'it works');
    is($redis->published, $left, 'a new worker brings nothing of it back');
    $pid = kill_worker($node);
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    emit_some($node, 60);
    ok(flush($node), 'the next one publishes new events');
    is($redis->published, $left + 60, 'and only those');
    is($bad->(), $only, 'nothing is back and nothing is doubled');
    # in the middle of a batch, with the last chunk in flight and trimmed when it is executed
    emit_some($node, 500);
    poll_until(sub { $redis->published > $left + 60 }, 'the worker is at work');
    kill_worker($node);
    poll_until(sub { eval { flush($node) } }, 'another worker has published the rest');
    my $before = $redis->published;
    is($before, $left + 560, 'also from the middle of a batch');
    $redis->cmd('XTRIM', $_, 'MAXLEN', 0) for $redis->streams;
    $pid = kill_worker($node);
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    ok(flush($node), 'a worker that finds empty streams works');
    is($redis->published, 0, 'and leaves them empty');
    emit_some($node, 40);
    ok(flush($node), 'until there are new events');
    is($redis->published, 40, 'which are there once');
    $node->stop;
    $redis->stop;
}

# the marker is gone and the entries are not

{
    my ($redis, $node) = set_up('marker', aof => 'always');
    emit_some($node, 300);
    ok(flush($node), 'events are published');
    my $marker = marker_key($node);
    my @all = grep { !/\{/ } @{ $redis->cmd('KEYS', 'outbox:*') };
    cmp_ok(scalar @all, '>=', 1, 'the marker is there');
    $redis->cmd('DEL', @all);
    poll_until(sub { $redis->cmd('EXISTS', $marker) }, 'an idle worker writes it again');
    emit_some($node, 100);
    settled($node, $redis, 'a marker that is deleted while the worker waits');

    my $load = start_load($node, clients => 2, rate => 200, weights => \%weights);
    for my $n (1 .. 10) {
        $redis->cmd('DEL', $marker);
        poll_until(sub { $redis->cmd('EXISTS', $marker) }, 'the worker writes it again');
    }
    $load->stop;
    settled($node, $redis, 'or while it works');

    # what it published last has not been written down in the database either
    for my $how (qw(immediate TERM fast)) {
        emit_some($node, 200);
        ok(flush($node), 'events are published');
        emit_some($node, 200);
        ok(flush($node), 'and more of them');
        if ($how eq 'TERM') {
            my $pid = kill_worker($node, 'postgres', 'TERM');
            $redis->cmd('DEL', @all);
            poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
        }
        else {
            $node->stop($how);
            $redis->cmd('DEL', @all);
            $node->start;
        }
        emit_some($node, 50);
        settled($node, $redis, "or between two workers ($how)");
    }
    $node->stop;
    $redis->stop;
}

# Redis comes back with nothing

{
    my ($redis, $node) = set_up('volatile');
    my $load = start_load($node, clients => 2, rate => 150, weights => \%weights);
    for my $n (1 .. $rounds) {
        emit_some($node, 500);
        my $published = $redis->published;
        $n % 2 ? $redis->kill9 : $redis->stop;
        emit_some($node, 100);
        $redis->start;
        poll_until(sub { $redis->published > $published }, 'events are published again');
    }
    $redis->kill9;
    kill_worker($node);
    $redis->start;
    $load->stop;
    settled($node, $redis, 'a Redis that is killed and comes back empty');
    cmp_ok(stat_sink($node)->{healed}, '>', 0, 'was healed');

    # FLUSHALL
    my $offset = -s $node->logfile;
    $redis->cmd('FLUSHALL');
    my $began = time;
    ok(eval { poll_until(sub { $redis->published >= committed($node) }, 'it is healed') },
        'FLUSHALL is noticed and healed without any new event') or diag($@);
    note sprintf 'healed after %.1f s', time - $began;
    ok_streams($node, $redis, 'completely');
    ok(log_has($node, qr/WARNING:  Redis at .* has lost entries of sink/, $offset), 'and the log says so');

    my $consumer = start_consumer($redis);
    poll_until(sub { $redis->cmd('XINFO', 'GROUPS', 'outbox:{audit}')->[0] }, 'the consumer has its groups');
    $redis->cmd('FLUSHALL');
    settled($node, $redis, 'FLUSHALL with a consumer that makes the streams again');
    $load = start_load($node, clients => 2, rate => 150, weights => \%weights);
    for my $n (1 .. $rounds * 2) {
        emit_some($node, 300) if $n % 2;
        sleep rand 0.05;
        $redis->cmd('FLUSHALL');
        my $committed = committed($node);
        # every second time in the middle of healing
        poll_until(sub { $redis->published >= ($n % 2 ? 1 : $committed) }, 'it is healed');
    }
    $load->stop;
    settled($node, $redis, 'FLUSHALL under load, again and again');

    # the worker that heals is ended before it is done
    for my $signal (qw(TERM KILL)) {
        $redis->cmd('FLUSHALL');
        my $pid = wait_for_worker($node);
        poll_until(sub { $redis->published > 100 }, 'it is being healed');
        kill_worker($node, 'postgres', $signal);
        poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
        emit_some($node, 10);
        settled($node, $redis, "FLUSHALL and SIG$signal in the middle of healing");
    }

    # the server is not there when it happens
    for my $how (qw(immediate fast)) {
        emit_some($node, 100);
        flush($node);
        emit_some($node, 20);
        flush($node);
        $node->stop($how);
        $redis->cmd('FLUSHALL');
        $node->start;
        settled($node, $redis, "FLUSHALL while the server is stopped ($how)");
    }
    stop_consumer($consumer);

    # the keys are elsewhere
    $redis->cmd('SWAPDB', 0, 5);
    settled($node, $redis, 'SWAPDB');
    $redis->cmd('SELECT', 5);
    $redis->cmd('FLUSHDB');
    $redis->cmd('SELECT', 0);

    # the worker has given up for a while
    $redis->cmd('CONFIG', 'SET', 'maxmemory', 1);
    emit_some($node, 10);
    poll_until(sub { stat_sink($node)->{state} eq 'backing off' }, 'Redis is full');
    $redis->cmd('FLUSHALL');
    $redis->cmd('CONFIG', 'SET', 'maxmemory', 0);
    settled($node, $redis, 'FLUSHALL of a full Redis');

    # somebody else writes first
    my $foreign = sub { my ($key, $id, $fields) = @_; return exists $fields->{foreign} };
    for my $key (qw(outbox:{audit} outbox:{billing})) {
        $redis->cmds(['MULTI'], ['FLUSHALL'], [ 'XADD', $key, '*', 'foreign', 1 ], ['EXEC']);
        settled($node, $redis, "FLUSHALL and then an entry of somebody else in $key", ignore => $foreign);
        emit_some($node, 40);
        settled($node, $redis, 'and new events behind it', ignore => $foreign);
    }
    # and nobody has written down what was there
    emit_some($node, 200);
    flush($node);
    $node->stop('immediate');
    $redis->cmds(['FLUSHALL'], [ 'XADD', 'outbox:{shop}', '*', 'foreign', 1 ]);
    $node->start;
    emit_some($node, 40);
    settled($node, $redis, 'the same while the server is stopped', ignore => $foreign);
    $redis->cmd('FLUSHALL');
    settled($node, $redis, 'and all of it once more', ignore => $foreign);
    $node->stop;
    $redis->stop;
}

# Redis loses its data, and the connection breaks while the worker finds that out: what it has seen before, it sees again.

{
    my $redis = OutboxTest::Redis->new;
    my $proxy = OutboxTest::Proxy->new(to => $redis);
    my $node = new_node(name => 'broken', url => $proxy->url);
    for my $n (1 .. $rounds * 3) {
        emit_some($node, 100);
        ok(flush($node), 'events are published') if $n == 1;
        my $cuts = $proxy->stats->{cuts};
        $redis->cmd('FLUSHALL');
        # in every second round the streams are there again, but not what was in them
        $redis->cmds(map { [ 'XADD', "outbox:{$_}", '1-1', 'foreign', 1 ] } qw(audit billing identity shop wallet)) if $n % 2;
        # what a worker is answered until it has reconciled
        $n % 3 ? $proxy->swallow(int rand 700) : $proxy->cut_request(int rand 1500);
        $proxy->wait_for_cut($cuts + 1) or die 'nothing was cut';
        poll_until(sub { !check_streams($node, $redis)->{lost} }, 'it is healed') if $n < $rounds * 3;
    }
    settled($node, $redis, 'data and connections are lost together', ignore => sub { exists $_[2]{foreign} });
    $node->stop;
    $proxy->stop;
    $redis->stop;
}

# one stream is deleted

{
    my ($redis, $node) = set_up('stream', aof => 'always');
    emit_some($node, 200);
    ok(flush($node), 'events are published');
    my $before = $redis->published;
    my $gone = $redis->cmd('XLEN', 'outbox:{billing}');
    my $offset = -s $node->logfile;
    $redis->cmd('DEL', 'outbox:{billing}');
    emit_some($node, 100);
    ok(flush($node), 'new events go on');
    is($redis->published, $before - $gone + 100, 'into a new stream, and the old ones stay away');
    ok(log_has($node, qr/WARNING:.*outbox:\{billing\}/, $offset), 'the log has a warning');
    my $pid = kill_worker($node);
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    emit_some($node, 20);
    ok(flush($node), 'it works');
    # the last chunk is in doubt until the marker says that every reply to it was seen
    poll_until(sub { my ($marker) = grep { !/:lease$/ } @{ $redis->cmd('KEYS', 'outbox:sink:*') }; $redis->cmd('GET', $marker) =~ /:0$/ },
        'nothing is in doubt');
    $redis->cmd('DEL', 'outbox:{audit}');
    my $found = check_streams($node, $redis);
    $pid = kill_worker($node, 'postgres', 'TERM');
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    emit_some($node, 20);
    ok(flush($node), 'as does the one after it');
    ok(log_has($node, qr/WARNING:.*outbox:\{audit\}/, $offset), 'which warns of what was deleted before it came');
    my $then = check_streams($node, $redis);
    is($then->{lost}, $found->{lost}, 'nothing of it is back, and nothing else is missing');
    # a consumer makes it again at once: nobody can see that, but nothing goes wrong
    my $shop = $redis->cmd('XLEN', 'outbox:{shop}');
    $redis->cmds(['MULTI'], [ 'DEL', 'outbox:{shop}' ], [ 'XGROUP', 'CREATE', 'outbox:{shop}', 'g', 0, 'MKSTREAM' ], ['EXEC']);
    emit_some($node, 20);
    ok(flush($node), 'events go on into a stream that a consumer has made');
    kill_worker($node);
    poll_until(sub { eval { flush($node) } }, 'there is another worker');
    $then = check_streams($node, $redis);
    is($then->{lost}, $found->{lost} + $shop, 'nothing of it comes back either');
    is(join(' ', map { $then->{$_} } qw(ghost duplicated out_of_order corrupt unordered_ids)), '0 0 0 0 0', 'or wrong');
    $node->stop;
    $redis->stop;
}

# A failover to a replica that lags, seen from one connection: what was the primary takes the other's data, and is the
# primary again. Its marker is one that this worker wrote.

{
    my ($redis, $node) = set_up('failover');
    my $replica = OutboxTest::Redis->new(name => 'replica', conf => [ 'repl-diskless-sync-delay 0' ]);
    my $follow = sub {
        my ($who, $whom) = @_;
        $who->cmd('REPLICAOF', '127.0.0.1', $whom->port);
        poll_until(sub { $who->cmd('INFO', 'replication') =~ /master_link_status:up/ }, 'the replica has all');
    };
    emit_some($node, 100);
    ok(flush($node), 'events are published');
    # quick: it takes writes again before anybody has looked; slow: the worker meets a read-only Redis with older data first
    for my $how (qw(quick slow quick+busy slow+busy)) {
        my $load = $how =~ /busy/ && start_load($node, clients => 2, rate => 150, weights => \%weights);
        emit_some($node, 100);
        $follow->($replica, $redis);
        flush($node);
        poll_until(sub { $replica->published >= 100 }, 'the replica has events');
        $replica->cmd('REPLICAOF', 'NO', 'ONE');
        my $had = $replica->published;
        emit_some($node, 50);
        poll_until(sub { $redis->published > $had }, 'the replica lags');
        flush($node) unless $load;
        my $errors = stat_sink($node)->{errors};
        my $offset = -s $node->logfile;
        $follow->($redis, $replica);
        is($redis->published, $had, 'what the replica did not have is lost');
        if ($how =~ /slow/) {
            emit_some($node, 10);
            poll_until(sub { stat_sink($node)->{errors} > $errors + 3 }, 'the worker has tried several times');
        }
        $redis->cmd('REPLICAOF', 'NO', 'ONE');
        emit_some($node, 50) if $load;
        if ($load) { sleep 0.5; $load->stop }
        settled($node, $redis, "a failover to a lagging replica ($how)");
        # of the sink: the server itself may speak of a checkpoint
        my $lines = () = slurp_file($node->logfile, $offset) =~ / (?:WARNING|LOG):  .*(?:sink|Redis|outbox)/g;
        cmp_ok($lines, '<', 12, 'which is a few lines in the log');
    }
}

done_testing();
