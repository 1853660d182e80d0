# outboxctl verify: outbox.verify() with its findings, how far it is, and an end when one wants it.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.response_timeout = '10min'\n");
serve($node, $redis);
emit_some($node, 40);    # some in each stream, whatever the load chooses
ok(flush($node), 'there are events');
run_load($node, clients => 2, transactions => 60);
emit_some($node, 40);
wait_settled($node);

my $committed = committed($node);
my $run = ctl('verify');
is($run->{status}, 0, 'all is well');
like($run->{out}, qr/: $committed events of \d+ ticks were compared with $committed entries of \d+ streams\neverything is where it should be\n\z/, 'and how much was compared is said');
is($run->{err}, '', 'without a terminal there is no progress bar');
my $doc = ctl_json('verify');
ok($doc->{verified}, 'scripts are told');
is(scalar @{ $doc->{findings} }, 0, 'that there is no finding');

# findings

my @wallet = $redis->entries('outbox:{wallet}');
# one in the middle, in a later tick than those that are trimmed
my ($deleted) = grep { $_->[0] !~ /^${\($wallet[1][0] =~ s{-.*}{}r)}-/ } @wallet[ 3 .. $#wallet - 1 ];
$redis->cmd('XTRIM', 'outbox:{wallet}', 'MINID', $wallet[2][0]);
is(ctl('verify')->{status}, 4, 'entries that were trimmed are a warning');
$redis->cmd('XDEL', 'outbox:{wallet}', $deleted->[0]);
my $extra = $redis->cmd('XADD', 'outbox:{wallet}', '*', 'a', "\e[2J");
$doc = ctl_json(1, 'verify');
my @columns = qw(finding stream expected found event_id entries);
my @true = map { [ map { $_ eq '' ? undef : $_ } split /\|/, $_, -1 ] } split /\n/, $node->safe_psql('postgres', 'SELECT ' . join(', ', @columns) . ' FROM outbox.verify()');
is_deeply([ map { [ @$_{@columns} ] } @{ $doc->{findings} } ], \@true, 'the findings are those of outbox.verify()');
is(join(' ', map { $_->{finding} } @{ $doc->{findings} }), 'trimmed missing extra', 'each that was made');
ok(!$doc->{verified}, 'so it is not verified');
$run = ctl('verify');
is($run->{status}, 1, 'people get a status, too');
like($run->{out}, qr/^missing +outbox:\{wallet\} +$deleted->[0] +- +$deleted->[1]{event_id} +1 +/m, 'and a table');

# the time asked for

my ($ms) = split /-/, $deleted->[0];
my $at = $node->safe_psql('postgres', "SELECT to_char(to_timestamp($ms / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')");
is(join(' ', map { $_->{finding} } @{ ctl_json(1, 'verify', '--since', $at, '--until', $at)->{findings} }), 'missing', 'a tick alone');
is(ctl('verify', '--until', '2026-01-01')->{status}, 0, 'before all there is nothing');
is(ctl('verify', '--since', '1d', '--until', '2d')->{status}, 3, 'what outbox.verify() refuses is refused');
is(ctl('verify', '--since', 'soon')->{status}, 2, 'what is no time is wrong usage');
$run = ctl('verify', '--sink', 'nowhere');
is($run->{status}, 3, 'a sink that is not there');
like($run->{err}, qr/sink "nowhere" does not exist/, 'is named');
$node->safe_psql('postgres', 'CREATE ROLE reader LOGIN; GRANT outbox_reader TO reader');
$run = ctl('verify', '-d', 'user=reader dbname=postgres');
is($run->{status}, 3, 'a reader may not verify');
like($run->{err}, qr/permission denied.*\nhint: .*GRANT outbox_admin TO "reader"/, 'and is told who may');

# one that may connect but once does without a progress bar
$node->safe_psql('postgres', 'GRANT outbox_admin TO reader; ALTER ROLE reader CONNECTION LIMIT 1');
my $alone = OutboxTest::Ctl::Terminal->new('outboxctl verify -d "user=reader dbname=postgres"; echo status $?');
my $shown = $alone->finish;
like($shown, qr/missing.*status 1\r?\n\z/s, 'a single connection is enough');
unlike($shown, qr/ ticks, \d+ findings, up to /, 'for all but the progress bar');

# progress, as long as Redis keeps it waiting

sub progress { return $node->safe_psql('postgres', "SELECT count(*), COALESCE(max(ticks_total), 0) FROM outbox.stat_verify") }

$redis->sigstop;
my $terminal = OutboxTest::Ctl::Terminal->new('outboxctl verify; echo status $?');
my $bar = $terminal->expect(qr/\d+ of \d+ ticks, \d+ findings, up to /);
my ($total) = $bar =~ / of (\d+) ticks/;
is(progress(), "1|$total", 'the bar has the number of ticks that outbox.stat_verify has');
$redis->sigcont;
my $rest = $terminal->finish;
like($rest, qr/\r\e\[K.*\e\[1mFINDING.*status 1\r?\n\z/s, 'it makes room for the findings');
unlike($rest, qr/\e\[2J/, 'which cannot clear the screen');

$redis->sigstop;
$terminal = OutboxTest::Ctl::Terminal->new('trap : INT; outboxctl verify; echo status $?');
$terminal->expect(qr/ ticks, /);
is(progress(), "1|$total", 'another one');
$terminal->type("\x03");
like($terminal->finish, qr/status 130\r?\n\z/, 'ends with ctrl-c');
poll_until(sub { progress() eq '0|0' }, 'also in the server');
$redis->sigcont;
is(ctl('verify')->{status}, 1, 'and the next one runs');

done_testing();
