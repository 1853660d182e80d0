# outbox.verify() of much, while retention drops what it looks at, and with no more rights and processes than there are.
use strict;
use warnings;
use POSIX ();
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "max_wal_size = '4GB'\nautovacuum = off\n");

sub one { my ($sql, $on) = @_; return ($on // $node)->safe_psql('postgres', $sql) }
sub verify {
    my ($on) = @_;
    return one('SELECT finding, stream, expected, found, event_id, entries FROM outbox.verify()', $on);
}

# one transaction of many events, and large ones

my $many = $ENV{EVENTS} // 200_000;
one(qq{SELECT count(outbox.emit('large.event.emitted', '{"n": ' || i || '}', topic => CASE WHEN i % 10 = 0 THEN 'other' END))
         FROM generate_series(1, $many) i});
one(q{SELECT outbox.emit('huge.event.emitted', '"' || repeat(md5(i::text), 32000) || '"') FROM generate_series(1, 40) i});
poll_until(sub { flush($node) }, 'all of it is published');

# looks at the worker's own memory while it runs
sub most_memory_of {
    my ($run) = @_;
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        my $good = eval { $run->(); 1 };
        POSIX::_exit($good ? 0 : 1);
    }
    my ($most, $looks) = (0, 0);
    poll_until(
        sub {
            for my $worker (split /\n/, one('SELECT worker_pid FROM outbox.stat_verify')) {
                my ($now) = eval { OutboxTest::slurp_file("/proc/$worker/status") =~ /^RssAnon:\s+(\d+) kB/m } or next;
                $most = $now / 1000 if $now / 1000 > $most;
                $looks++;
            }
            return waitpid($pid, POSIX::WNOHANG()) == $pid;
        },
        'it is verified');
    is($?, 0, 'it is as it should be');
    return ($most, $looks);
}
my $began = time;
my ($most, $looks) = (0, 0);
for (1 .. 20) {
    my ($now, $more) = most_memory_of(sub { die if verify() ne '' });
    $most = $now if $now > $most;
    $looks += $more;
    last if $looks > 3;
}
note sprintf '%d events in %.1f s, %d looks, at most %.1f MB', $many, time - $began, $looks, $most;
cmp_ok($looks, '>', 3, 'the worker was looked at while it worked');
cmp_ok($most, '<', 50, 'in less than 50 MB');

# one of them
my ($entry) = @{ $redis->cmd('XRANGE', 'outbox:{other}', '-', '+', 'COUNT', 1000)->[-1] };
$redis->cmd('XDEL', 'outbox:{other}', $entry);
like(verify(), qr/^missing\|outbox:\{other\}\|$entry\|\|[0-9a-f-]{36}\|1$/, 'the one of many that is not there is found');
# and all
$redis->cmd('DEL', 'outbox:{large}');
($most, $looks) = most_memory_of(sub { die if one('SELECT count(*) FROM outbox.verify()') != $many - $many / 10 + 1 });
cmp_ok($most, '<', 50, 'also when nearly all are missing');
note sprintf 'at most %.1f MB', $most;
$redis->cmd('FLUSHALL');
poll_until(sub { stat_sink($node)->{healed} > $many && stat_sink($node)->{state} eq 'streaming' }, 'it is healed');
poll_until(sub { flush($node) }, 'it is published');
is(verify(), '', 'healed, it is all there');

$node->stop;

# what retention has dropped

my $own = OutboxTest::Redis->new;
my $short = new_node(name => 'short', redis => $own, conf => "outbox.retention = '2s'\n");
my ($failed, $rounds) = (0, 0);
my ($status, $found, $err);
my $load = start_load($short, clients => 1, rate => 150);
poll_until(
    sub {
        my ($status, $out, $err) = $short->psql('postgres', 'SELECT * FROM outbox.verify()');
        $failed++, diag("$out$err") if $status == 0 ? $out ne '' : $err !~ /were dropped by retention while/;
        $rounds++ if $err =~ /and [1-9]\d* ticks as their events were dropped by retention/;
        return $rounds > 0 && one('SELECT COALESCE(max(generation), 0) FROM outbox.ring', $short) >= 8;
    },
    'the ring has turned');
$load->stop;
wait_settled($short);
cmp_ok($rounds, '>', 0, 'events were dropped');
is($failed, 0, 'what was dropped is neither missing nor extra, while it is being dropped');
is(verify($short), '', 'nor in the end');

# what is retained begins with a tick whose own events went with the ones before it: also when nothing more is to be dropped
my $turned = one('SELECT max(generation) FROM outbox.ring', $short) + 8;
poll_until(
    sub {
        emit_some($short, 3);
        flush($short);
        return one('SELECT max(generation) FROM outbox.ring', $short) >= $turned;
    },
    'the ring has turned once more');
one("ALTER SYSTEM SET outbox.retention = '1 h'", $short);
$short->reload;
emit_some($short, 3);
poll_until(sub { flush($short) }, 'all is published');
($status, $found, $err) = $short->psql('postgres', 'SELECT * FROM outbox.verify()');
is($found, '', 'the first tick that is retained is not judged');
like($err, qr/[1-9]\d* events of [1-9]\d* ticks were compared.*and [1-9] ticks as their events were dropped/s, 'but the others are');
my ($stream, $at) = split / /, one("SELECT stream || ' ' || position FROM outbox.event ORDER BY seq DESC LIMIT 1", $short);
$own->cmd('XDEL', $stream, $at);
is(one('SELECT finding, stream, expected FROM outbox.verify()', $short), "missing|$stream|$at", 'one by one');

# a user of Redis with no more than the documented rights

my $guarded = OutboxTest::Redis->new;
$guarded->cmd('ACL', 'SETUSER', 'outbox', 'on', '>se:cret', 'resetkeys', '-@all', '~outbox:*',
    map({ "+$_" } qw(select client|setname watch get set multi exec discard xadd xrange xinfo|stream xinfo|groups xpending xlen info)));
one(sprintf(q{ALTER SYSTEM SET outbox.redis_url = 'redis://outbox:se%%3Acret@127.0.0.1:%d/0'}, $guarded->port), $short);
$short->reload;
emit_some($short, 10);
poll_until(sub { $guarded->published >= 10 && flush($short) }, 'it is published elsewhere');
is(verify($short), '', 'the documented rights are enough');
is_deeply($guarded->cmd('ACL', 'LOG'), [], 'and no other is asked for');
$guarded->cmd('ACL', 'SETUSER', 'outbox', '-xrange');
($status, undef, $err) = $short->psql('postgres', 'SELECT * FROM outbox.verify()');
like($err, qr/ERROR:  could not read .*NOPERM.*\nHINT:/, 'one that is missing is told');
unlike($err . OutboxTest::slurp_file($short->logfile), qr/se(:|%3A)cret/, 'and the password is not');

# no process to be had

one('ALTER SYSTEM SET max_worker_processes = 3', $short);    # the launcher, the worker, and PostgreSQL's own
$short->restart;
wait_for_worker($short);
($status, undef, $err) = $short->psql('postgres', 'SELECT * FROM outbox.verify()');
like($err, qr/ERROR:  could not start a worker to verify with: no background worker is free\nHINT:  Increase max_worker_processes/,
    'without a background worker it says so');

# nor the library

my $bare = new_node(name => 'bare', preload => 0, load => 0);
($status, undef, $err) = $bare->psql('postgres', 'SELECT * FROM outbox.verify()');
like($err, qr/ERROR:  nothing can be verified: outbox is not preloaded\nHINT:/, 'without the library preloaded it says so');

done_testing();
