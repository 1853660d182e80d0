# redis+sentinel://: the worker asks the sentinels for the master whenever it connects, believes them only when the server says
# so itself, and appends again what a failover has lost.
use strict;
use warnings;
use OutboxTest;
use OutboxTest::Certificates;
use PostgreSQL::Test::Utils;
use Test::More;

my %weights = (commit => 60, multi => 15, savepoint => 5, rollback => 10, async => 10);
my ($secret, $sentinels_secret) = ('hunter2-of-the-server', 'hunter2-of-the-sentinels');

# What the README lists, and ROLE.
my @users = (
    "user outbox on >$secret resetchannels ~outbox:* +select +client|setname +watch +multi +exec +discard +get +set +xadd +xrange "
        . '+xinfo|stream +role',
    'user copy on >copy ~* &* +@all', 'masteruser copy', 'masterauth copy', 'repl-diskless-sync-delay 0');

# A master that stands still for less than that, with the machine, is not replaced.
sub sentinel_of {
    my ($master_port, @more) = @_;
    return OutboxTest::Redis->new(name => 'sentinel', sentinel => 1, conf => [
        "sentinel monitor wallets 127.0.0.1 $master_port 1", 'sentinel down-after-milliseconds wallets 6000',
        'sentinel failover-timeout wallets 10000', @more ], auth => [$sentinels_secret]);
}

my $first = OutboxTest::Redis->new(name => 'first', aof => 'always', conf => \@users);
my $second = OutboxTest::Redis->new(name => 'second', aof => 'always', conf => [ @users, 'replicaof 127.0.0.1 ' . $first->port ]);
my $is_copy = sub { my ($redis) = @_; return $redis->cmd('INFO', 'replication') =~ /^master_link_status:up/m };
poll_until(sub { $is_copy->($second) }, 'there is a replica');
my $sentinel = sentinel_of($first->port, "requirepass $sentinels_secret");
my $master_port = sub { return $sentinel->cmd(qw(SENTINEL GET-MASTER-ADDR-BY-NAME wallets))->[1] };
my $replica = sub { my ($port) = @_; my %of = @{ ($sentinel->cmd(qw(SENTINEL REPLICAS wallets)))->[0] // [] };
    return ($of{port} // 0) == $port && $of{flags} eq 'slave' && $of{'master-link-status'} eq 'ok' };
poll_until(sub { $replica->($second->port) }, 'the sentinel knows the replica');

# nobody is at the first address, and nobody at the second, which is an IPv6 address
my $nobody = PostgreSQL::Test::Cluster::get_free_port();
my $addresses = "127.0.0.1:$nobody,[::1]:$nobody,127.0.0.1:" . $sentinel->port;
my $url = "redis+sentinel://outbox:$secret\@$addresses/wallets/0?sentinel_password=$sentinels_secret";
my $node = new_node(url => $url);

emit_some($node, 30);
ok(flush($node), 'the sentinel leads to the master');
is($first->published, 30, 'and what is emitted is there');

# the replica does not get what the master confirms, and takes its place

my $load = start_load($node, clients => 2, rate => 100, weights => \%weights);
poll_until(sub { $second->published > 100 }, 'the replica has something');
$first->cmd(qw(ACL SETUSER copy off));
$first->cmd(qw(CLIENT KILL TYPE replica));
poll_until(sub { !$is_copy->($second) }, 'the replica is cut off');
emit_some($node, 500);
ok(flush($node), 'the master alone confirms more');
my $lost = $first->published - $second->published;
cmp_ok($lost, '>=', 500, 'which the replica does not have');
$first->kill9;
poll_until(sub { $master_port->() == $second->port && $second->cmd('ROLE')->[0] eq 'master' }, 'the sentinel has made the replica the master');
my $had = poll_until(sub { $second->published }, 'its entries are there');
poll_until(sub { $second->published > $had + 500 }, 'the worker has followed');
$load->stop;
wait_settled($node);
ok_streams($node, $second, 'a failover that loses confirmed entries loses, doubles and reorders nothing');
cmp_ok(stat_sink($node)->{healed}, '>=', 500, 'what was lost was healed');
like(slurp_file($node->logfile), qr/works again with Redis at "127\.0\.0\.1:@{[$second->port]}"/, 'the log says where the master is now');

# the old master comes back with the entries that nobody else had

$first->start;
$load = start_load($node, clients => 2, rate => 100, weights => \%weights);
poll_until(sub { $first->cmd('ROLE')->[0] eq 'slave' && $is_copy->($first) }, 'the sentinel makes it a replica');
poll_until(sub { $replica->($first->port) }, 'and knows it as one');
# (it has to have seen that the failover before is over and that the replica answers)
is(poll_until(sub { $sentinel->cmd(qw(SENTINEL FAILOVER wallets)) }, 'the sentinel is ready for that'), 'OK', 'an operator swaps them');
poll_until(sub { $master_port->() == $first->port && $second->cmd('ROLE')->[0] eq 'slave' }, 'they are swapped');
poll_until(sub { $is_copy->($second) }, 'and copy');
$had = poll_until(sub { $first->published }, 'its entries are there');    # connections are cut by the swap, also this one's
poll_until(sub { $first->published > $had + 50 }, 'the worker has followed again');
$load->stop;
wait_settled($node);
ok_streams($node, $first, 'a swap under load loses, doubles and reorders nothing');

# the sentinel's word is not enough

# (after some twenty seconds it would look for another one)
$first->cmd('REPLICAOF', '127.0.0.1', $nobody);
emit_some($node, 10);
poll_until(sub { stat_sink($node)->{last_error} =~ /^the server that the sentinel named is no master/ }, 'the worker does not take it for one');
$first->cmd(qw(REPLICAOF NO ONE));
ok(flush($node), 'until it is one');
ok_streams($node, $first, 'and nothing is lost by that');

# what can be wrong

sub is_refused {
    my ($wrong, $reason, $hint) = @_;
    my $offset = -s $node->logfile;
    $node->safe_psql('postgres', "ALTER SYSTEM SET outbox.redis_url = '$wrong'");
    $node->reload;
    emit_some($node, 1);
    return ok(eval { poll_until(sub { log_has($node, qr/could not connect to Redis at .*: $reason.*\n.*HINT:  $hint/, $offset) }, 'said') },
        "the log says: $reason") || diag substr slurp_file($node->logfile), $offset;
}

my $at = qr/sentinel at "127\.0\.0\.1:@{[$sentinel->port]}"/;
is_refused($url =~ s{/wallets}{/purses}r, qr/$at: it knows no master of this name/, 'Check the sentinels and the name of the master');
is_refused($url =~ s/\?.*//r, qr/$at: NOAUTH/, 'Check the user and password');
is_refused($url =~ s/(sentinel_password)=.*/$1=hunter2-wrong/r, qr/$at: (WRONGPASS|ERR invalid password)/, 'Check the user and password');
is_refused($url =~ s/,127.*?(?=\/)//r, qr/sentinel at "\[::1\]:$nobody": /, 'Check the sentinels');
unlike(slurp_file($node->logfile), qr/hunter2/, 'no password is in the log');

# a file has both passwords
my $file = $node->basedir . '/passwords';
append_to_file($file, "$secret\n$sentinels_secret\n");
chmod 0600, $file or die;
$node->safe_psql('postgres', $_) for "ALTER SYSTEM SET outbox.redis_password_file = '$file'",
    "ALTER SYSTEM SET outbox.redis_url = 'redis+sentinel://outbox\@$addresses/wallets'";
$node->reload;
ok(flush($node), 'the password file may have a second line for the sentinels');
ok_streams($node, $first, 'after all that everything is there once');
$_->stop for $sentinel, $second, $first;

# all of it by TLS

{
    my $certificates = OutboxTest::Certificates->new;
    $certificates->make('server', names => 'DNS:localhost,IP:127.0.0.1');
    my ($port, $sentinels_port) = map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;
    my $redis = OutboxTest::Redis->new(port => 0, conf => [ @users, $certificates->redis_conf('server', $port) ]);
    my $guarded = sentinel_of($port, "requirepass $sentinels_secret", $certificates->redis_conf('server', $sentinels_port, 'tls-replication yes'));
    my $answers = sub { ref(eval { $guarded->cmd(qw(SENTINEL GET-MASTER-ADDR-BY-NAME wallets)) }) };
    poll_until($answers, 'the sentinel is up');
    my $tls = new_node(name => 'tls', url => "rediss+sentinel://outbox:$secret\@localhost:$sentinels_port/wallets"
        . "?sentinel_password=$sentinels_secret&sslrootcert=" . $certificates->path('ca.crt'));
    emit_some($tls, 20);
    ok(flush($tls), 'the sentinel and the master are reached by TLS');
    is($redis->published, 20, 'and what is emitted is there');
    unlike(slurp_file($tls->logfile), qr/hunter2/, 'no password is in the log');
    $tls->stop;
}

$node->stop;
done_testing();
