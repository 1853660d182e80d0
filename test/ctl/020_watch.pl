# outboxctl status --watch: a screen that follows, and a terminal that is afterwards as it was, however it ends.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP ();
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis);
serve($node, $redis);
emit_some($node, 40);
ok(flush($node), 'there are events');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', 'billing', 0);

# how the terminal is, before, and after what ends the program
my $settings = sub { return "stty -g; $_[0]; echo status \$?; stty -g" };

sub screen { return OutboxTest::Ctl::Terminal->new($settings->("outboxctl status --watch --interval 0.2 $_[0]")) }

# Of what was written: the settings before and after are the same, and the screen was left as it was entered.
sub restored {
    my ($written, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($before, $after) = $written =~ /^([0-9a-f:]+)\r?\n.*\nstatus \d+\r?\n([0-9a-f:]+)\r?\n\z/s;
    is($after, $before, "$name: the terminal is as it was");
    return like($written, qr/\e\[\?1049h\e\[\?25l.*\e\[\?25h\e\[\?1049l[^\e]*\z/s, "$name: the cursor and what was on the screen, too");
}

my $screen = screen('');
my $written = $screen->expect(qr/default\e\[0m +\e\[32mstreaming/);
$written .= $screen->expect(qr/every 0\.2 s, q ends/);
$redis->sigstop;
$node->safe_psql('postgres', 'SELECT load.step(3) FROM generate_series(1, 123)');
$redis->sigcont;
my $total = committed($node);
$written .= $screen->expect(qr/streaming\e\[0m +0 .*? $total +0 +0 /);
pass('the screen follows the sink');
$written .= $screen->expect(qr/outbox:\{wallet\} +\d+ +\e\[1mbilling *\e\[0m +${\($redis->cmd('XLEN', 'outbox:{wallet}'))} /);
pass('and the groups');
$written .= $screen->expect(qr/\x{e2}\x{96}[\x{81}-\x{88}]/);
pass('with sparklines');
$redis->sigstop;
$node->safe_psql('postgres', 'SELECT load.step(3) FROM generate_series(1, 7)');
$redis->sigcont;
$screen->type('q');
$written .= $screen->finish;
like($written, qr/status 0\r?\n/, 'q ends it well');
restored($written, 'q');

$screen = screen('');
$written = $screen->expect(qr/q ends/);
$screen->type("\x03");
$written .= $screen->finish;
like($written, qr/status 0\r?\n/, 'so does ctrl-c');
restored($written, 'ctrl-c');

# a server that goes away
$screen = screen('-d "dbname=postgres application_name=watched"');
$written = $screen->expect(qr/q ends/);
my $backend = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'watched'";
is($node->safe_psql('postgres', $backend), 1, 'its connection is ended');
$written .= $screen->expect(qr/the connection to PostgreSQL broke/);
pass('that is said on the screen');
emit_some($node, 11);
flush($node);
$total = committed($node);
$written .= $screen->expect(qr/streaming\e\[0m +0 .*? $total +0 +0 /);
pass('and it connects again');
$screen->type('Q');
restored($written . $screen->finish, 'after a failure');

# a signal
my $pid_file = PostgreSQL::Test::Utils::tempdir() . '/pid';
$screen = OutboxTest::Ctl::Terminal->new($settings->("(echo \$BASHPID >$pid_file; exec $ENV{OUTBOXCTL} status --watch)"));
$written = $screen->expect(qr/q ends/);
chomp(my $pid = PostgreSQL::Test::Utils::slurp_file($pid_file));
kill 'TERM', $pid;
$written .= $screen->finish;
like($written, qr/status 143\r?\n/, 'a signal ends it as a signal does');
restored($written, 'SIGTERM');

# it cannot begin
$screen = screen('-d nowhere');
$written = $screen->finish;
like($written, qr/database "nowhere" does not exist.*status 3\r?\n/s, 'what cannot work is said where it can be read');
unlike($written, qr/\e\[\?1049h/, 'and no screen is made for it');
my $run = ctl('status', '--watch');
is($run->{status}, 2, 'without a terminal there is no screen');
like($run->{err}, qr/--watch needs a terminal\nhint: Use --watch --json/, 'and a hint says what there is');

# for scripts: a line for each look
my ($out, $err) = ('', '');
my $lines = IPC::Run::start([ $ENV{OUTBOXCTL}, qw(status --watch --json --interval 0.1) ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(60));
$lines->pump until $out =~ /\n.*\n/;
my $had = $total;
emit_some($node, 5);
flush($node);
$total = committed($node);
$lines->pump until $out =~ /"published":$total,.*\n/;
$lines->kill_kill;
my @seen = map { $_->{sinks}[0]{published} } map { JSON::PP->new->utf8->decode($_) } grep { /\}$/ } split /\n/, $out;
is($seen[0], $had, 'each line is what was then');
is($seen[-1], $total, 'up to the last');

done_testing();
