# rediss://: the worker talks to the server whose certificate it has verified, and to no other; whoever else answers gets not
# one byte of a password or an event. A handshake that hangs keeps nobody from anything.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use OutboxTest;
use OutboxTest::Certificates;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $certificates = OutboxTest::Certificates->new;
my $names = 'DNS:localhost,IP:127.0.0.1,IP:::1';
$certificates->make('server', names => $names);
$certificates->make('old', names => $names, expired => 1);
$certificates->make('alone', names => $names, by => undef);
$certificates->make('elsewhere', names => 'DNS:redis.example.org,IP:192.0.2.1');
$certificates->authority('other');
$certificates->make('foreign', names => $names, by => 'other');
$certificates->make('client');
my $ca = $certificates->path('ca.crt');
my $secret = 'hunter2-no-log-has-this';
my %weights = (commit => 60, multi => 15, savepoint => 5, rollback => 10, async => 10);

sub tls_server {
    my ($certificate, @more) = @_;
    my $port = PostgreSQL::Test::Cluster::get_free_port();
    my $redis = OutboxTest::Redis->new(conf => [ "requirepass $secret", 'bind 127.0.0.1 -::1',
        $certificates->redis_conf($certificate, $port, @more) ], auth => [$secret], aof => 'always');
    $redis->{tls_port} = $port;
    return $redis;
}

sub url {
    my ($redis, %options) = @_;
    my $host = $options{host} // '127.0.0.1';
    my $port = $options{port} // $redis->{tls_port};
    my @parameters = ('sslrootcert=' . ($options{ca} // $ca));
    push @parameters, 'sslcert=' . $certificates->path("$options{as}.crt"), 'sslkey=' . $certificates->path("$options{as}.key") if $options{as};
    return "rediss://:$secret\@$host:$port/0?" . join '&', @parameters;
}

my $redis = tls_server('server');
# The time-out is long where none is to happen: nothing that ends or goes on at once can have waited for it.
my $node = new_node(url => url($redis), conf => "outbox.retry_max = '100ms'\noutbox.connect_timeout = '60s'\n");

sub use_url {
    my ($url, $timeout) = @_;
    my $offset = -s $node->logfile;
    $node->safe_psql('postgres', $_) for "ALTER SYSTEM SET outbox.redis_url = '$url'",
        'ALTER SYSTEM ' . ($timeout ? "SET outbox.connect_timeout = '$timeout'" : 'RESET outbox.connect_timeout');
    $node->reload;
    return $offset;
}

# it works

emit_some($node, 3);
ok(flush($node), 'events are published by TLS');
is($redis->published, 3, 'and are there');
like($redis->cmd('INFO', 'stats'), qr/^total_connections_received:/m, 'in the server that was meant');
for my $host ('localhost', '[::1]') {
SKIP: {
        skip 'there is no IPv6 here', 2 if $host eq '[::1]' && !eval { require IO::Socket::IP; IO::Socket::IP->new(PeerAddr => '::1', PeerPort => $redis->{tls_port}) };
        my $offset = use_url(url($redis, host => $host));
        my $before = $redis->published;
        emit_some($node, 3);
        ok(flush($node), "the server's name is $host");
        is($redis->published, $before + 3, 'and what is sent there is there');
    }
}

# much at once, in both directions, while everything that can be killed is killed
my $proxy = OutboxTest::Proxy->new(to => "127.0.0.1:$redis->{tls_port}", tcp => 1);
use_url(url($redis, port => $proxy->{port}));
my $load = start_load($node, clients => 2, rate => 200, weights => \%weights, large => 20);
for my $round (1 .. 3) {
    my $published = $redis->published;
    emit_some($node, 3000);
    poll_until(sub { $redis->published > $published }, 'the worker is at work');
    $proxy->cut if $round == 1;
    kill_worker($node, 'postgres', 'TERM') if $round == 2;
    $redis->restart(keep_data => 1) if $round == 3;
    poll_until(sub { ($redis->published // 0) > $published + 1000 }, 'events are published again');
}
$proxy->dribble(61);
emit_some($node, 20);
$proxy->cut;
ok(flush($node), 'a line that brings 61 bytes at a time is slow and no more');
$proxy->pass;
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'TLS, cut lines and killed processes lose and double nothing');
$proxy->stop;

# it refuses

sub is_refused {
    my ($url, $reason, $hint, $name, $timeout) = @_;
    my $offset = use_url($url, $timeout);
    emit_some($node, 1);
    my $said = eval {
        poll_until(sub { log_has($node, qr/could not connect to Redis at "[^"]*" for sink "default": TLS: $reason.*\n.*HINT:  $hint/, $offset) },
            'the log says so');
    };
    ok($said, "$name is refused, and the log says why and what to do") or diag substr slurp_file($node->logfile), $offset;
    like(stat_sink($node)->{last_error}, qr/TLS: $reason/, 'so does the view');
    return;
}

# No command of ours has reached it.
sub nothing_arrived {
    my ($redis, $name) = @_;
    unlike($redis->cmd('INFO', 'commandstats'), qr/cmdstat_(select|multi|client)/, "$name: no command has reached it");
    is($redis->published, 0, 'and no event');
    return;
}

for my $case (
    [ 'old', 'the server\'s certificate has expired', 'Renew the server\'s certificate' ],
    [ 'alone', 'the server\'s certificate is self-signed', 'Set sslrootcert' ],
    [ 'elsewhere', 'the server\'s certificate is not for host "127.0.0.1"', 'Use a name or address' ],
    [ 'foreign', 'the server\'s certificate is signed by an unknown certificate authority', 'Set sslrootcert' ],
    ) {
    my ($certificate, $reason, $hint) = @$case;
    my $false = tls_server($certificate);
    $false->cmd('CONFIG', 'RESETSTAT');
    is_refused(url($false), qr/\Q$reason\E/, $hint, "a server whose certificate is \"$certificate\"");
    nothing_arrived($false, $certificate);
    $false->stop;
}

is_refused(url($redis, host => 'localhost') =~ s/\?.*//r, qr/the server's certificate is signed by an unknown certificate authority/,
    'Set sslrootcert', 'an authority that the system does not know');

{
    my $dated = tls_server('server', 'tls-protocols TLSv1.1', 'tls-ciphers DEFAULT@SECLEVEL=0');
    $dated->cmd('CONFIG', 'RESETSTAT');
    is_refused(url($dated), qr/there is no protocol that the server supports, too/, 'Let the server offer TLS 1.2', 'TLS 1.1');
    nothing_arrived($dated, 'TLS 1.1');
    $dated->stop;
}

# A server that does not speak TLS gets the first message of a handshake and nothing else, however it answers.
{
    my $plain = OutboxTest::Redis->new(conf => [ "requirepass $secret" ], auth => [$secret]);
    $plain->cmd('CONFIG', 'RESETSTAT');
    is_refused(url($plain, port => $plain->port), qr/(the handshake timed out|the server does not speak TLS|server closed the connection)/,
        'Check that the URL leads to the server\'s TLS port', 'a port without TLS', '2s');
    nothing_arrived($plain, 'no TLS');
    $plain->stop;
}

sub listener { return IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) // die "listen: $!" }

sub accepted {
    my ($listener) = @_;
    IO::Select->new($listener)->can_read(60) or die 'nobody comes';
    return $listener->accept;
}

for my $answer ("-ERR unknown command\r\n", "+OK\r\n" x 100, "HTTP/1.1 400 Bad Request\r\n\r\n") {
    my $listener = listener();
    my $offset = use_url(url($redis, port => $listener->sockport));
    emit_some($node, 1);
    my $socket = accepted($listener);
    IO::Select->new($socket)->can_read(60) or die 'it says nothing';
    sysread $socket, my $said, 65536;
    syswrite $socket, $answer;
    my $more = '';
    while (IO::Select->new($socket)->can_read(60) && sysread $socket, my $bytes, 65536) { $more .= $bytes }
    like($said, qr/^\x16\x03/, 'a handshake is begun');
    unlike($said . $more, qr/AUTH|\Q$secret\E|XADD/i, 'whatever the other side answers, no secret follows');
    poll_until(sub { log_has($node, qr/TLS: the server does not speak TLS at this port/, $offset) }, 'the log says why');
}

# The other side takes the connection and is silent.
{
    my $listener = listener();
    use_url(url($redis, port => $listener->sockport));
    emit_some($node, 1);
    my $socket = accepted($listener);
    my $pid = wait_for_worker($node);
    my $began = time;
    kill_worker($node, 'postgres', 'TERM', undef, $pid);
    poll_until(sub { !kill 0, $pid }, 'the worker ends');
    cmp_ok(time - $began, '<', 20, 'a worker in a handshake ends at once');
    my $another = accepted($listener);

    $node->safe_psql('postgres', 'CREATE DATABASE hung');
    prepare_database($node, 'hung');
    emit_some($node, 1, 'hung');
    poll_until(sub { stat_sink($node, 'hung')->{state} =~ /connecting|backing off/ }, 'its worker connects');
    $began = time;
    $node->safe_psql('postgres', 'DROP DATABASE hung');
    cmp_ok(time - $began, '<', 20, 'its database is dropped at once');

    use_url(url($redis));
    ok(flush($node, 'postgres', '20 s'), 'another URL is taken up at once');

    my $offset = use_url(url($redis, port => $listener->sockport), '2s');
    emit_some($node, 1);
    poll_until(sub { log_has($node, qr/TLS: the handshake timed out.*\n.*HINT:  Check that the URL/, $offset) }, 'it gives up in time');
}

# A handshake that goes on a byte at a time is over when its time is.
{
    my $listener = listener();
    my $offset = use_url(url($redis, port => $listener->sockport), '2s');
    emit_some($node, 1);
    my $socket = accepted($listener);
    local $SIG{PIPE} = 'IGNORE';
    my $began = time;
    # the beginning of a record of 16 kB
    my $sent = syswrite $socket, "\x16\x03\x03\x40\x00";
    while ($sent && time < $began + 60) {
        $sent = syswrite $socket, "\x02";
        sleep 0.02;
    }
    cmp_ok(time - $began, '<', 30, 'a handshake that drips is given up in time');
    poll_until(sub { log_has($node, qr/TLS: the handshake timed out/, $offset) }, 'the log says so');
}

# who we are

{
    my $strict = tls_server('server', 'tls-auth-clients yes');
    $strict->cmd('CONFIG', 'RESETSTAT');
    is_refused(url($strict), qr/the server asked for a client certificate, and none is configured/, 'Set sslcert and sslkey', 'no client certificate');
    nothing_arrived($strict, 'no client certificate');
    is_refused(url($strict, as => 'foreign'), qr/the server refused the client certificate/, 'Set sslcert and sslkey', 'a client certificate of another authority');
    nothing_arrived($strict, 'another authority');

    chmod 0640, $certificates->path('client.key') or die;
    is_refused(url($strict, as => 'client'), qr/private key file "[^"]*" has group or world access; use mode 0600/, 'The key must be', 'a key that others may read');
    chmod 0600, $certificates->path('client.key') or die;
    is_refused(url($strict, as => 'client') =~ s/client\.key/server.key/r, qr/private key file "[^"]*" does not fit the certificate/, 'The key must be', 'the key of another certificate');
    is_refused(url($strict, as => 'client') =~ s/client\.crt/none.crt/r, qr/could not load certificate file "[^"]*none.crt": No such file/, 'The file must be', 'a file that is not there');
    is_refused(url($strict, ca => $certificates->path('none.crt')), qr/could not load root certificate file "[^"]*none.crt": No such file/, 'The file must be', 'an authority that is not there');

    use_url(url($strict, as => 'client'));
    ok(flush($node), 'the right certificate is let in');
    cmp_ok($strict->published, '>', 0, 'and what it brings is there');
    $strict->stop;
}

use_url(url($redis));
ok(flush($node), 'after all that the right server gets everything');
ok_streams($node, $redis, 'and everything once');
unlike(slurp_file($node->logfile), qr/\Q$secret\E/, 'no password is in the log');
$node->stop;

done_testing();
