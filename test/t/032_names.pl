# Host names are looked up without waiting: a name server that never answers keeps nobody from a signal. In a network
# namespace of its own, where port 53 of the loopback is a socket that nobody reads.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use OutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $redis = OutboxTest::Redis->new;
(my $by_name = $redis->tcp_url) =~ s/127\.0\.0\.1/localhost/;
my $node = new_node(redis => $redis, name => 'names', conf => "outbox.connect_timeout = '2s'\noutbox.retry_max = '100ms'\n");

emit_some($node, 3);
$node->append_conf('postgresql.conf', "outbox.redis_url = '$by_name'");
$node->reload;
emit_some($node, 3);
ok(flush($node), 'a name from /etc/hosts leads to Redis');

my $offset = -s $node->logfile;
$node->append_conf('postgresql.conf', "outbox.redis_url = 'redis://no-such-host.invalid:6379'");
$node->reload;
emit_some($node, 3);
poll_until(sub { log_has($node, qr/could not look up host|connection timed out/, $offset) }, 'the log says what is wrong');
ok(!log_has($node, qr/PANIC|terminated by signal/, $offset), 'a name that does not exist ends nothing');

SKIP: {
    my @apart = qw(unshare --user --map-current-user --keep-caps --mount --net);
    skip 'no namespaces for an ordinary user here', 4
        if system("@apart sh -c 'ip link set lo up && mount --bind /etc/hosts /etc/resolv.conf' >/dev/null 2>&1") != 0;

    $node->stop;
    my $folder = $node->basedir;
    open my $out, '>', "$folder/resolv.conf" or die $!;
    print $out "nameserver 127.0.0.1\n";
    close $out;
    open $out, '>', "$folder/silent.pl" or die $!;
    print $out q{
        use IO::Socket::INET;
        my $s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => '127.0.0.1', LocalPort => 53) or die "$!";
        open my $ready, '>', shift or die; close $ready;
        sleep 1 while getppid() == $ARGV[0];
    };
    close $out;
    my ($data, $log) = ($node->data_dir, $node->logfile);
    # The server and the silent socket end together: the shell waits for the server.
    my $child = fork() // die;
    if (!$child) {
        exec @apart, 'sh', '-c', "ip link set lo up && mount --bind '$folder/resolv.conf' /etc/resolv.conf && "
            . "{ perl '$folder/silent.pl' '$folder/ready' \$\$ & } && exec postgres -D '$data' >>'$log' 2>&1";
    }
    poll_until(sub { -e "$folder/ready" && $node->poll_query_until('postgres', 'SELECT true') }, 'the server is up, apart');
    my $before = -s $log;
    emit_some($node, 3);
    poll_until(sub { stat_sink($node)->{state} =~ /connecting|backing off/ }, 'the worker looks the name up');
    is($node->safe_psql('postgres', "SELECT outbox.flush('1s')"), 'f', 'nothing is published meanwhile');

    poll_until(sub { log_has($node, qr/connection timed out/, $before) }, 'and it gives up in time');

    # From here on that time is so long that nothing of what follows can have waited for it.
    $node->safe_psql('postgres', $_) for "ALTER SYSTEM SET outbox.connect_timeout = '60s'", 'SELECT pg_reload_conf()';
    my $looks_up = sub {
        my ($old) = @_;
        return poll_until(
            sub {
                my $pid = worker_pid($node);
                $pid && $pid != $old && stat_sink($node)->{state} eq 'connecting' && $pid;
            },
            'another worker looks the name up');
    };
    my $pid = $looks_up->(kill_worker($node, 'postgres', 'TERM'));
    my $began = time;
    kill_worker($node, 'postgres', 'TERM', undef, $pid);
    poll_until(sub { !kill 0, $pid }, 'the worker ends');
    cmp_ok(time - $began, '<', 20, 'a worker that waits for a name server ends at once');

    $looks_up->($pid);
    $node->safe_psql('postgres', $_) for "ALTER SYSTEM SET outbox.redis_url = '" . $redis->url . "'", 'SELECT pg_reload_conf()';
    ok(flush($node, 'postgres', '20 s'), 'another URL is taken up in the middle of a look-up');
    kill 'INT', $child;
    waitpid $child, 0;
    is($?, 0, 'the server stops at once');
    unlink "$data/postmaster.pid";
    $node->{_pid} = undef;
}

done_testing();
