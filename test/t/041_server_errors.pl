# Redis as a whole refuses to work, from one command of a pipeline to the next. That is no event's fault: no attempt is
# spent and nothing becomes a dead letter; emit goes on, and when Redis works again the backlog is appended in order.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $redis = OutboxTest::Redis->new(conf => [
    'busy-reply-threshold 50', 'stop-writes-on-bgsave-error yes', 'save 3600 1000000' ]);
$redis->cmd('ACL', 'SETUSER', 'outbox', 'on', '>secret', '~*', '+@all');
my $node = new_node(
    name => 'main',
    url => 'redis://outbox:secret@127.0.0.1:' . $redis->port . '/0',
    conf => "outbox.max_attempts = 1\noutbox.retry_max = '200ms'\noutbox.batch_size = 200\n");

# a second connection, for what must be done while the first one waits
sub another { return bless { %$redis, connection => undef, timeout => 5 }, 'OutboxTest::Redis' }

sub kill_connection { return $redis->cmd('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes') }

my $load = start_load($node, clients => 3, rate => 250);

# `from` is called in the middle of a burst, and what it did is over after `to`.
sub outage {
    my ($name, $error, $from, $to, %options) = @_;
    my $before = $redis->published;
    # a burst, so that chunk follows chunk when it begins
    emit_some($node, 600);
    poll_until(sub { $redis->published > $before }, "$name: the worker is in the middle of it");
    $from->();
    poll_until(sub { stat_sink($node)->{state} eq 'backing off' && stat_sink($node)->{last_error} =~ $error },
        "$name: the worker backs off");
    like(stat_sink($node)->{last_error}, $error, "$name: stat_sink says why");
    my $committed = committed($node);
    poll_until(sub { committed($node) > $committed + 20 }, "$name: emit goes on");
    my $errors = stat_sink($node)->{errors};
    poll_until(sub { stat_sink($node)->{errors} > $errors + 1 }, "$name: it is tried again and again");
    is($node->safe_psql('postgres', q{
        SELECT COALESCE(max(attempts), 0), count(held_ms), (SELECT count(*) FROM outbox.dead_letter) FROM outbox.stream}),
        '0|0|0', "$name: nothing is held or dead for that");
    $to->();
    $redis->disconnect if $options{new_connection};
    poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, "$name: the worker works again");
    return;
}

sub config {
    my ($name, $value) = @_;
    return sub { $redis->cmd('CONFIG', 'SET', $name, $value) };
}

outage('OOM', qr/^OOM/, config('maxmemory', 1), config('maxmemory', 0));
outage('READONLY', qr/^READONLY/, sub { $redis->cmd('REPLICAOF', '127.0.0.1', 1) }, sub { $redis->cmd('REPLICAOF', 'NO', 'ONE') });
outage('MASTERDOWN', qr/^MASTERDOWN|^READONLY/,
    sub { $redis->cmd('CONFIG', 'SET', 'replica-serve-stale-data', 'no'); $redis->cmd('REPLICAOF', '127.0.0.1', 1) },
    sub { $redis->cmd('REPLICAOF', 'NO', 'ONE') });
outage('NOREPLICAS', qr/^NOREPLICAS/, config('min-replicas-to-write', 1), config('min-replicas-to-write', 0));

# a folder where the dump should be
my $dump = $redis->dir . '/dump.rdb';
outage('MISCONF', qr/^MISCONF/,
    sub {
        mkdir $dump or die "$dump: $!";
        $redis->cmd('BGSAVE');
        poll_until(sub { $redis->cmd('INFO', 'persistence') =~ /rdb_last_bgsave_status:err/ }, 'saving has failed');
    },
    sub {
        rmdir $dump or die "$dump: $!";
        $redis->cmd('BGSAVE');
        poll_until(sub { $redis->cmd('INFO', 'persistence') =~ /rdb_last_bgsave_status:ok/ }, 'saving works');
    });

outage('WRONGPASS', qr/^WRONGPASS/,
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', 'resetpass', '>other'); kill_connection() },
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', 'resetpass', '>secret') });
outage('a user switched off', qr/^WRONGPASS|^NOAUTH/,
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', 'off'); kill_connection() },
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', 'on') });
outage('XADD forbidden', qr/^NOPERM.*xadd/,
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', '-xadd') }, sub { $redis->cmd('ACL', 'SETUSER', 'outbox', '+xadd') });
outage('the marker forbidden', qr/^NOPERM/,
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', 'resetkeys', '~outbox:{*') },
    sub { $redis->cmd('ACL', 'SETUSER', 'outbox', '~*') });
outage('too many clients', qr/^ERR max number of clients/,
    sub { $redis->cmd('CONFIG', 'SET', 'maxclients', 1); kill_connection() }, config('maxclients', 1000));

my $busy;
outage('a busy script', qr/^BUSY|no answer in time/,
    sub {
        $busy = another();
        $busy->connect;
        $busy->send_all(OutboxTest::Redis::encode('EVAL', 'while true do end', 0));
        poll_until(sub { !eval { $redis->cmd('EXISTS', 'x'); 1 } && $@ =~ /^BUSY/ }, 'the script runs');
    },
    sub {
        $redis->cmd('SCRIPT', 'KILL');
        $busy->disconnect;
    });

$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'after all of it everything is there, once and in order');
is(stat_sink($node)->{dead_letters}, 0, 'without a dead letter');

# from here on without a user, so that there is a password to be missing
$node->safe_psql('postgres', 'ALTER SYSTEM SET outbox.redis_url = ' . "'" . $redis->url . "'");
$node->reload;
$load = start_load($node, clients => 3, rate => 250);
outage('NOAUTH', qr/^NOAUTH/,
    sub { $redis->cmd('CONFIG', 'SET', 'requirepass', 'secret'); kill_connection() },
    config('requirepass', ''));

# Loading: the keys are few, so each is made to take its time. All of them would take longer than the test looks.
$redis->cmds(map { [ 'SET', "filler$_", $_ ] } 1 .. 15000);
my @conf = @{ $redis->{conf} };
outage('LOADING', qr/^LOADING/,
    sub {
        $redis->cmd('SAVE');
        $redis->{conf} = [ @conf, 'key-load-delay 4000', 'loading-process-events-interval-bytes 1024' ];
        # what came between SAVE and the end is lost, and healed from the database
        $redis->kill9;
        $redis->start(wait => 0);
        poll_until(sub { !eval { $redis->cmd('EXISTS', 'x'); 1 } && $@ =~ /^LOADING/ }, 'it is loading');
    },
    sub {
        $redis->cmd('CONFIG', 'SET', 'key-load-delay', 0);
        poll_until(sub { $redis->cmd('EXISTS', 'filler1') }, 'it has loaded');
    });
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'and so it is after NOAUTH and LOADING');
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.dead_letter'), 0, 'without a dead letter');
is($node->safe_psql('postgres', 'SELECT COALESCE(max(attempts), 0) FROM outbox.stream'), 0, 'and without an attempt spent');

done_testing();
