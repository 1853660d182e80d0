# The command line of outboxctl: help, completion and man page say the same; passwords are seen nowhere; a user of Redis needs
# no more than the man page says.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

# help

my $help = ctl('--help');
is($help->{status}, 0, '--help is no error');
my ($listed) = $help->{out} =~ /^Subcommands:\n((?:  \S.*\n)+)/m;
my @commands = map { $_ eq 'dlq' ? map { "dlq $_" } qw(ls show redrive discard) : $_ } $listed =~ /^  (\w+)/mg;
is("@commands", 'status tail show groups dlq ls dlq show dlq redrive dlq discard replay verify doctor', 'the commands');
my %options;
for my $command (@commands) {
    my $out = ctl(split(/ /, $command), '--help')->{out};
    like($out, qr/^Examples:\n  outboxctl $command/m, "$command --help has examples");
    $options{$command} = [ sort map { split /,/, $_ } $out =~ /^  (-\S+)/mg ];
}
like(ctl('--version')->{out}, qr/^outboxctl \d+\.\d+\.\d+\n\z/, '--version');
for my $wrong ([], ['nonsense'], ['dlq'], [ 'status', '--nonsense' ], [ 'show' ], [ 'tail', '--count', 'x' ], [ 'status', '--watch', '--interval', 0 ]) {
    my $run = ctl(@$wrong);
    is($run->{status}, 2, "\"outboxctl @$wrong\" is wrong usage");
    like($run->{err}, qr/^outboxctl: .+\nhint: Try "outboxctl.*--help"\.\n\z/, 'and says where to read');
}
like(ctl('nonsense')->{err}, qr/there is no command "nonsense"/, 'a command that is none is named');

# completion

my $bash = 'ctl/completion/outboxctl.bash';
sub completed {
    my (@words) = @_;
    my $script = '. "$1"; shift; COMP_WORDS=(outboxctl "$@"); COMP_CWORD=$#; _outboxctl; printf "%s\n" "${COMPREPLY[@]}"';
    open my $bash_out, '-|', 'bash', '-c', $script, 'bash', $bash, @words or die "bash: $!";
    my $out = join '', <$bash_out>;
    return join ' ', sort grep { length } split /\n/, $out;
}
is(completed(''), join(' ', sort qw(status tail show groups dlq replay verify doctor -h --help --version)), 'bash completes commands');
is(completed('dlq', 'r'), 'redrive', 'of dlq, too');
is(completed(split(/ /, $_), '-'), "@{ $options{$_} }", "and the options of $_") for @commands;
is(completed('status', '--sink', ''), '', 'but no name of a sink');
my %text = map { $_ => slurp_file("ctl/completion/outboxctl.$_") } qw(zsh fish);
my $page = slurp_file('doc/outboxctl.1') =~ s/\\-/-/gr;
for my $command (@commands) {
    my ($last) = $command =~ /(\w+)$/;
    like($text{$_}, qr/\b$last\b/, "$_ knows $command") for qw(zsh fish);
    like($page, qr/$command/, "so does the man page");
    for my $option (@{ $options{$command} }) {
        my $bare = $option =~ s/^-+//r;
        like($text{fish}, $option =~ /^--/ ? qr/-l \Q$bare\E\b/ : qr/-s \Q$bare\E\b/, "fish knows $option");
        like($text{zsh}, qr/\Q$option\E\b/, "zsh knows $option");
        like($page, qr/\Q$option\E\b/, "the man page knows $option");
    }
}
SKIP: {
    skip 'there is no man', 1 unless grep { -x "$_/man" } split /:/, $ENV{PATH};
    is(`MANROFFSEQ= LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z doc/outboxctl.1 2>&1 >/dev/null`, '', 'the man page has no mistakes');
}

# passwords

my $redis = OutboxTest::Redis->new(aof => 'everysec');
my $password = 's3cret/@:%';
$redis->cmd('ACL', 'SETUSER', 'worker', 'on', ">$password", '~*', '+@all');
my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
append_to_file($file, "$password\n");
chmod 0600, $file;
my $url = 'redis://worker@127.0.0.1:' . $redis->port;
my $node = new_node(redis => $redis, url => $url, conf => "outbox.redis_password_file = '$file'\n");
serve($node, $redis);
emit_some($node, 20);
ok(flush($node), 'the sink works with its password');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', 'billing', 0);

my $escaped = 's3cret%2F%40%3A%25';
my $everything = '';
sub works { my ($name, @words) = @_; my $run = ctl('groups', @words); $everything .= $run->{out} . $run->{err}; return is($run->{status}, 0, $name) }

works('a superuser on this machine needs no word of it: the sink\'s own file');
$node->safe_psql('postgres', 'CREATE ROLE reader LOGIN; GRANT outbox_reader TO reader');
my @reader = ('-d', 'user=reader dbname=postgres');
my $run = ctl('groups', @reader);
is($run->{status}, 3, 'others must give it');
like($run->{err}, qr/^outboxctl: Redis refuses: .*\nhint: Give the password in a file/, 'which is said');
works('in a file', @reader, '--redis-password-file', $file);
{ local $ENV{OUTBOX_REDIS_PASSWORD_FILE} = $file; works('which the environment may name', @reader) }
{ local $ENV{OUTBOX_REDIS_PASSWORD} = $password; works('or in the environment itself', @reader) }
{ local $ENV{OUTBOX_REDIS_URL} = "redis://worker:$escaped\@127.0.0.1:" . $redis->port; works('or with the URL there') ; $everything .= ctl('status', '--json')->{out} . ctl('doctor', '--json')->{out} }
$run = ctl('groups', '--redis', "redis://worker:$escaped\@127.0.0.1:" . $redis->port);
is($run->{status}, 2, 'but not on the command line');
like($run->{err}, qr/a password on the command line can be seen/, 'where it can be seen');
$everything .= $run->{err};
is(ctl('groups', @reader, '--redis-password-file', "$file.not")->{status}, 3, 'a file that is not there');
{
    local $ENV{OUTBOX_REDIS_URL} = "redis://worker:$escaped\@127.0.0.1:" . $redis->port;
    is(ctl('dlq', 'ls', '--topic', 'wallet')->{status}, 0, 'the client library gets the password, too');
    my $ids = ctl_json('dlq', 'ls')->{consumers_total};
    is($ids, 0, 'and finds no dead letter');
    $redis->cmd('XADD', 'outbox:{wallet}:dlq:billing', '7-7', outbox_position => '1-1', event_id => 'x');
    is(ctl('dlq', 'discard', '7-7', '--yes')->{status}, 0, 'and acts with it');
}
unlike($everything, qr/s3cret/, 'it is shown nowhere');
like($everything, qr/worker:\*\*\*@127/, 'where the URL is, it is masked') or diag $everything;

# the least that a user of Redis may do

my ($acl) = $page =~ /^ACL SETUSER operator on >secret (.*)$/m;
$redis->cmd('ACL', 'SETUSER', 'operator', 'on', '>op', split / /, $acl);
$redis->cmd('XADD', 'outbox:{wallet}:dlq:billing', '8-8', outbox_position => '1-1', event_id => 'x');
{
    local $ENV{OUTBOX_REDIS_URL} = 'redis://operator:op@127.0.0.1:' . $redis->port;
    my $id = $node->safe_psql('postgres', 'SELECT event_id FROM outbox.event LIMIT 1');
    for my $words ([qw(status)], [qw(groups)], [qw(tail --no-follow)], [ 'show', $id ], [qw(dlq ls)], [qw(dlq show 8-8)]) {
        is(ctl(@$words)->{status}, 0, "the user of the man page may \"@$words\"");
    }
    my $doctor = ctl('doctor', '--json')->{out};
    unlike($doctor, qr/"unknown"/, 'and doctor sees everything');
    $run = ctl('dlq', 'redrive', '8-8');
    is($run->{status}, 3, 'but not act');
    like($run->{err}, qr/Redis refuses: .*NOPERM.*\nhint: .*REDIS PRIVILEGES/, 'which is said');
    $redis->cmd('ACL', 'SETUSER', 'operator', '+@write', '+@scripting');
    is(ctl('dlq', 'redrive', '8-8')->{status}, 0, 'unless it is given that');
}
$redis->cmd('ACL', 'SETUSER', 'poor', 'on', '>poor', '~outbox:*', '+select', '+exists');
{
    local $ENV{OUTBOX_REDIS_URL} = 'redis://poor:poor@127.0.0.1:' . $redis->port;
    is(ctl('groups')->{status}, 3, 'one that may not look is told so');
    my $found = ctl('doctor');
    like($found->{out}, qr/^unknown +Redis does not let this user look/m, 'and doctor does not guess');
}

done_testing();
