# The passwords of sinks are in a file that nobody but the server may read, each for one server; no query, title or log shows them.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $secret = 'Correct-Horse:7';
my $plain = OutboxTest::Redis->new(name => 'plain');
my $guarded = OutboxTest::Redis->new(name => 'guarded');
$guarded->cmds([ qw(ACL SETUSER outbox on), ">$secret", '~*', '&*', '+@all' ], [ qw(ACL SETUSER default off) ]);
my $file = PostgreSQL::Test::Utils::tempdir() . '/passwords';
my $node = new_node(redis => $plain, conf => <<"CONF");
outbox.sink_password_file = '$file'
log_statement = all
log_min_messages = debug5
log_min_duration_statement = 0
max_worker_processes = 16
CONF

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

sub write_file {
    my ($text, $mode) = @_;
    unlink $file;
    PostgreSQL::Test::Utils::append_to_file($file, $text);
    chmod $mode // 0600, $file or die "chmod: $!";
}
my $escaped = $secret =~ s/:/\\:/r;
my $port = $guarded->port;

# the harness' Redis listens on a socket; through TCP it is another server to the file
my $url = $guarded->url =~ s{//}{//outbox@}r;
my $socket = $guarded->socket;

sub refused {
    my ($why, $what) = @_;
    poll_until(sub { (stat_sink($node, 'postgres', 'guarded')->{last_error} // '') =~ $why }, $what);
    pass($what);
}

my ($status, undef, $error) = $node->psql('postgres', "SELECT outbox.create_sink('guarded', 'redis://outbox:Hunter-Two\@127.0.0.1:$port')");
isnt($status, 0, 'a URL with a password is refused');
like($error, qr/HINT:  Put the password into the file that outbox\.sink_password_file names/, 'and the hint says where it belongs');
unlike($error =~ s/^LINE.*//mr, qr/Hunter-Two/, 'without showing it');

one("SELECT outbox.create_sink('guarded', '$url')");
one(q{SELECT outbox.emit('secret.event.first', '{}')});
refused(qr/could not open password file/, 'without its file a sink has no password');
write_file("$socket:*:outbox:$escaped\n", 0644);
refused(qr/has group or world access; use mode 0600/, 'a file that others may read is not used');
write_file("127.0.0.1:*:*:$escaped\n*:*:*:$escaped\n$socket:*:other:$escaped\n");
refused(qr/a user is given without a password/, 'nor is a line for another server or user');
write_file("# the guarded one\n$socket:*:outbox:Wrong-Password\n");
refused(qr/WRONGPASS/, 'nor a wrong password, of course');
ok($node->psql('postgres', "SELECT 1") == 0 && flush($node), 'the other sink goes on meanwhile');
write_file("# the guarded one\n127.0.0.1:1:*:nothing\n$socket:*:outbox:$escaped\n");
poll_until(sub { flush($node, 'postgres', '5 s', 'guarded') }, 'with its line it works, without a word');
my $published = sub {
    my @reply = $guarded->cmds([ 'AUTH', 'outbox', $secret ], [ 'XLEN', 'outbox:{secret}' ]);
    return $reply[1];
};
is($published->(), 1, 'the event is there');
is(one(q{SELECT count(*) FROM outbox.verify('guarded')}), 0, 'verify has the password, too');

# nowhere

my $everything = one(<<'SQL');
SELECT concat((SELECT string_agg(s::text, ' ') FROM outbox.sink s), (SELECT string_agg(s::text, ' ') FROM outbox.stat_sink s),
    (SELECT string_agg(s::text, ' ') FROM pg_settings s), (SELECT string_agg(s::text, ' ') FROM pg_file_settings s),
    (SELECT string_agg(s::text, ' ') FROM pg_stat_activity s), (SELECT string_agg(s::text, ' ') FROM outbox.sink_definition s))
SQL
my $title = `ps axww -o args`;
my ($dump, $log) = ('', PostgreSQL::Test::Utils::slurp_file($node->logfile));
IPC::Run::run([ 'pg_dumpall', '-h', $node->host, '-p', $node->port ], '>', \$dump) or die 'pg_dumpall failed';
like($dump, qr/sink_definition/, 'the dump is one');
my $found = join ' ', map { my ($name, $text) = @$_; index($text, $secret) >= 0 || index($text, 'Correct-Horse') >= 0 || index($text, 'Hunter-Two') >= 0
    || index($text, 'Wrong-Password') >= 0 ? $name : () } [ views => $everything ], [ titles => $title ], [ log => $log ], [ dump => $dump ];
is($found, '', 'no password is in a view, a title, the log or a dump');

done_testing();
