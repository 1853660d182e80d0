# The connection may break at any byte, in both directions, and what answers may not be Redis at all: nothing is lost or
# doubled, nothing is believed that was not said, and the worker lives through all of it.
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
use OutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $rounds = $ENV{ROUNDS} // 8;
my $redis = OutboxTest::Redis->new(aof => 'always');
my $proxy = OutboxTest::Proxy->new(to => $redis);
my $node = new_node(url => $proxy->url);

sub sql { return $node->safe_psql('postgres', $_[0]) }

emit_some($node, 10);
ok(flush($node), 'events pass through the proxy');
my $worker = worker_pid($node);
my $load = start_load($node, clients => 2, rate => 100);

# broken connections

sub broken {
    my ($what, $limit, $break) = @_;
    my $cuts = $proxy->stats->{cuts};
    for my $n (1 .. $rounds) {
        # as much in one batch as makes several chunks, so that a cut falls into the middle of one
        emit_some($node, 300);
        $break->(int rand $limit);
        emit_some($node, 300);
        $proxy->wait_for_cut($cuts + $n) or die "nothing was cut: $what";
    }
    ok(flush($node), "the worker goes on after $rounds times $what");
}

my $before = stat_sink($node)->{duplicates_rejected};
broken('replies were swallowed', 30000, sub { $proxy->swallow($_[0]) });
cmp_ok(stat_sink($node)->{duplicates_rejected}, '>', $before, 'what had been executed was sent again and not believed');
broken('requests were cut', 100000, sub { $proxy->cut_request($_[0]) });
broken('connections were cut', 100, sub {
    # the worker may be between two connections
    my $cuts = $proxy->stats->{cuts};
    sleep $_[0] / 5000;
    poll_until(sub { $proxy->cut; $proxy->stats->{cuts} > $cuts }, 'a connection is cut');
});

# the first bytes of a connection are those of AUTH, SELECT and of reconciling
for my $n (0 .. 9) {
    poll_until(sub { $proxy->stats->{open} }, 'the worker is connected');
    $proxy->cut;
    my $cuts = $proxy->stats->{cuts};
    $n % 2 ? $proxy->swallow(9 * $n) : $proxy->cut_request(25 * $n);
    $proxy->wait_for_cut($cuts + 1) or die 'nothing was cut';
}
ok(flush($node), 'and after the beginnings of connections were cut');

$proxy->dribble(1);
emit_some($node, 50);
ok(flush($node), 'replies may arrive byte by byte');
$proxy->pass;

# a reply more or a reply too strange
my $asked = 0;
for my $bytes ("+QUEUED\r\n", "+OK\r\n", "\$5\r\nhello\r\n", "*-1\r\n", ":1\r\n", "-ERR no\r\n", "-OOM no\r\n", "*0\r\n",
    "-EXECABORT no\r\n", "\0\xff\x80\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "-NOPERM this user has no permissions to access one of the keys\r\n") {
    $proxy->inject($bytes);
    emit_some($node, 20);
    $asked += flush($node) ? 1 : 0;
}
is($asked, 12, 'strange replies among the right ones hold nobody up');

$proxy->refuse;
my $published = $redis->published;
poll_until(sub { stat_sink($node)->{state} eq 'backing off' }, 'the sink is refused');
emit_some($node, 10);
$proxy->pass;
poll_until(sub { $redis->published > $published }, 'the sink is back');
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'broken connections have lost and doubled nothing');
is(worker_pid($node), $worker, 'and the worker is still the same');

# Servers that are not Redis. Each is a process of its own, that ends with the test.

my @strangers;
my $owner = $$;

# $answer->($client, $request) after everything that comes; ->($client) when the connection is new
sub stranger {
    my ($answer) = @_;
    my $path = PostgreSQL::Test::Utils::tempdir_short() . '/stranger.sock';
    my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 20) or die "$path: $!";
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        $SIG{PIPE} = 'IGNORE';
        my $select = IO::Select->new($listener);
        # not for ever, should the test be gone
        while (getppid == $owner) {
            for my $socket ($select->can_read(1)) {
                my $client = $socket;
                my $request;
                if ($socket == $listener) {
                    $client = $listener->accept or next;
                    $select->add($client);
                    PostgreSQL::Test::Utils::append_to_file("$path.met", 'x');
                }
                elsif (!sysread $socket, $request, 65536) { $select->remove($socket); close $socket; next }
                next if $answer->($client, $request);
                $select->remove($client);
                close $client;
            }
        }
        POSIX::_exit(0);
    }
    close $listener;
    push @strangers, $pid;
    return $path;
}

END {
    my $status = $?;
    if ($$ == $owner) { kill 'KILL', @strangers; waitpid $_, 0 for @strangers }
    $? = $status;
}

sub says {
    my ($text) = @_;
    return sub { my ($client, $request) = @_; return defined $request ? syswrite $client, $text : 1 };
}

sub says_for_ever {
    my ($first, $again) = @_;
    return sub {
        my ($client, $request) = @_;
        return 1 unless defined $request;
        syswrite $client, $first or return 0;
        1 while syswrite $client, $again;
        return 0;
    };
}

sub lead_to {
    my ($url) = @_;
    sql("ALTER SYSTEM SET outbox.redis_url = '$url'");
    sql('SELECT pg_reload_conf()');
}

sub memory_mb {
    my ($pid) = @_;
    return slurp_file("/proc/$pid/status") =~ /VmHWM:\s+(\d+)/ ? $1 / 1024 : 0;
}

srand 7;
my $noise = join '', map { chr int rand 256 } 1 .. 4096;
my @strange = (
    [ 'closes what it has accepted' => sub { return 0 } ],
    [ 'closes at the first word' => sub { return !defined $_[1] } ],
    [ 'says nothing' => sub { return 1 } ],
    [ 'speaks HTTP' => says("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") ],
    [ 'makes noise' => says($noise) ],
    [ 'says OK to everything' => says("+OK\r\n" x 2000) ],
    [ 'says nil to everything' => says("\$-1\r\n" x 2000) ],
    [ 'has too many clients' => sub { syswrite $_[0], "-ERR max number of clients reached\r\n"; return 0 } ],
    [ 'announces a gigabyte' => says_for_ever("\$1073741824\r\n", 'x' x 65536) ],
    [ 'announces more than there is' => says("\$99999999999999999999999\r\n") ],
    [ 'announces less than nothing' => says("\$-7\r\n*-7\r\n") ],
    [ 'announces an endless array' => says("*2147483647\r\n") ],
    [ 'announces arrays in arrays' => says("*1000000\r\n" x 64) ],
    [ 'never ends a line' => says_for_ever('+', 'x' x 65536) ],
    [ 'never ends' => says_for_ever('', "+OK\r\n" x 10000) ],
);
for my $case (@strange) {
    my ($what, $answer) = @$case;
    my $path = stranger($answer);
    lead_to("unix://$path");
    emit_some($node, 1);
    poll_until(sub { -e "$path.met" }, 'the worker has met the stranger');
    my $began = time;
    my $errors = stat_sink($node)->{errors};
    ok(eval { poll_until(sub { stat_sink($node)->{errors} > $errors }, 'the worker has noticed') },
        "a server that $what is noticed") or diag($@);
    note sprintf '%s: %.1f s, %d MB', $what, time - $began, memory_mb($worker);
}
my $state = stat_sink($node);
cmp_ok($state->{lag_events}, '==', @strange, 'nothing of it was taken for published');
is(worker_pid($node), $worker, 'the worker has survived');
cmp_ok(memory_mb($worker), '<', 700, 'with bounded memory');
lead_to($redis->url);
my $began = time;
ok(flush($node), 'and goes on when it is led back to Redis');
cmp_ok(time - $began, '<', 25, 'at once');
ok_streams($node, $redis, 'nothing is lost or doubled in the end');
is(worker_pid($node), $worker, 'by the same worker');
unlike(slurp_file($node->logfile), qr/was terminated by signal/, 'nothing has crashed');

done_testing();
