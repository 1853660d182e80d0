# outboxctl status and groups: every figure is that of PostgreSQL or Redis themselves, on a terminal and for scripts.
use strict;
use warnings;
use JSON::PP ();
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.response_timeout = '60s'\n");
serve($node, $redis);

my $run = ctl('groups');
is("$run->{status} $run->{out}", "0 no stream yet\n", 'nothing was ever emitted');
run_load($node, clients => 2, transactions => 60);
emit_some($node, 100);    # some in each stream, whatever the load chose
wait_settled($node);

# XINFO as a hash
sub about { my %about = @{ $redis->cmd('XINFO', @_) }; return \%about }
sub groups_of { return map { my %about = @$_; \%about } @{ $redis->cmd('XINFO', 'GROUPS', $_[0]) } }

# groups in every state: one that has read nothing, one in the middle, one that is done
my $wallet = 'outbox:{wallet}';
for my $stream ($redis->streams) { $redis->cmd('XGROUP', 'CREATE', $stream, 'mail', 0) }
$redis->cmd('XGROUP', 'CREATE', $wallet, 'billing', 0);
$redis->cmd('XREADGROUP', 'GROUP', 'billing', 'b1', 'COUNT', 7, 'STREAMS', $wallet, '>');
$redis->cmd('XREADGROUP', 'GROUP', 'billing', 'b2', 'COUNT', 2, 'STREAMS', $wallet, '>');
my @wallet = $redis->entries($wallet);
$redis->cmd('XACK', $wallet, 'billing', $wallet[0][0]);
$redis->cmd('XGROUP', 'CREATE', $wallet, 'done', '$');
$redis->cmd('XADD', "$wallet:dlq:billing", '*', 'outbox_position', $wallet[0][0]) for 1 .. 3;
$redis->cmd('XADD', "$wallet:redrive:billing", '*', 'outbox_position', $wallet[0][0]);

# status

my $status = ctl_json('status');
is(scalar @{ $status->{sinks} }, 1, 'there is one sink');
my $sink = $status->{sinks}[0];
my $truth = stat_sink($node);
is_deeply([ sort keys %$sink ], [ sort keys %$truth ], 'it has every column of outbox.stat_sink');
for my $column (grep { !/^(lag_seconds|throughput|since|confirmed_at|last_error_at)$/ } sort keys %$truth) {
    my $value = $sink->{$column} // '';
    $value = $value ? 'true' : 'false' if ref $value; # JSON's own
    is($value, $truth->{$column}, "and the same $column");
}
is($sink->{published}, committed($node), 'published is what was committed');
is($status->{redis}, $redis->url, 'Redis is where the sink appends');
is(join(' ', map { $_->{stream} } @{ $status->{streams} }), join(' ', $redis->streams), 'all streams are there');
for my $stream (@{ $status->{streams} }) {
    my $about = about('STREAM', $stream->{stream});
    my @entries = $redis->entries($stream->{stream});
    is_deeply([ @$stream{qw(length first last groups)} ], [ scalar @entries, $entries[0][0], $about->{'last-generated-id'}, $about->{groups} ],
        "$stream->{stream} is as Redis has it");
}

# groups

my $before = $redis->cmd('TIME');
my $groups = ctl_json('groups')->{groups};
my $after = $redis->cmd('TIME');
my @rows = map { my $stream = $_; map { { stream => $stream, %$_ } } groups_of($stream) } $redis->streams;
is(scalar @$groups, scalar @rows, 'every group of every stream is there');
for my $i (0 .. $#rows) {
    my ($shown, $true) = ($groups->[$i], $rows[$i]);
    is_deeply([ @$shown{qw(stream group lag pending consumers last_delivered entries_read)} ],
        [ @$true{qw(stream name lag pending consumers last-delivered-id entries-read)} ], "$true->{name} of $true->{stream} is as Redis has it");
}
my ($billing) = grep { $_->{group} eq 'billing' } @$groups;
is($billing->{lag}, @wallet - 9, 'the lag is what was not read');
is($billing->{pending}, 8, 'what is pending was read and not acknowledged');
is($billing->{oldest_pending}, $wallet[1][0], 'the oldest of it');
my ($ms) = split /-/, $billing->{oldest_pending};
my ($low, $high) = map { $_->[0] + $_->[1] / 1e6 - $ms / 1000 } $before, $after;
ok($low - 0.002 <= $billing->{oldest_pending_age_seconds} && $billing->{oldest_pending_age_seconds} <= $high + 0.002, 'and its age');
is($billing->{dead_letters}, 3, 'its dead letters');
is($billing->{redriven}, 1, 'and what is to be handled again');
my ($done) = grep { $_->{group} eq 'done' } @$groups;
is("$done->{lag} $done->{pending}", '0 0', 'a group that is done is not behind');
is($done->{oldest_pending_age_seconds}, undef, 'and has no age');
is(join(' ', map { "$_->{stream} $_->{group}" } @{ ctl_json('groups', 'wallet')->{groups} }),
    join(' ', map { "$_->{stream} $_->{group}" } grep { $_->{stream} eq $wallet } @$groups), 'a topic alone');

# what Redis counts and what is there are not the same after trimming, and after a deletion it does not count
$redis->cmd('XTRIM', $wallet, 'MINID', $wallet[12][0]);
($billing) = grep { $_->{group} eq 'billing' } @{ ctl_json('groups', 'wallet')->{groups} };
is($billing->{lag}, @wallet - 12, 'entries that were trimmed are no lag');
$redis->cmd('XREADGROUP', 'GROUP', 'billing', 'b1', 'COUNT', 3, 'STREAMS', $wallet, '>');
$redis->cmd('XDEL', $wallet, $wallet[16][0]);
my ($true) = grep { $_->{name} eq 'billing' } groups_of($wallet);
is($true->{lag}, undef, 'Redis does not know the lag where an entry was deleted');
($billing) = grep { $_->{group} eq 'billing' } @{ ctl_json('groups', 'wallet')->{groups} };
ok(exists $billing->{lag} && !defined $billing->{lag}, 'and nobody guesses');
$run = ctl('groups', 'wallet');
like($run->{out}, qr/^\Q$wallet\E +billing +- /m, 'which is a dash for people');
like($run->{out}, qr/A lag of "-" is not known to Redis/, 'that is explained');

# as tables

is($run->{status}, 0, 'a table ends well');
unlike($run->{out}, qr/\e/, 'a pipe gets no colours');
my @lines = split /\n/, $run->{out};
my $column = index $lines[0], 'GROUP';
ok((!grep { substr($_, $column - 1, 1) ne ' ' || substr($_, $column, 1) !~ /[a-z]/ } @lines[ 1 .. 3 ]), 'columns are under their header');
for my $row (grep { $_->{stream} ne $wallet } @$groups) {
    $run = ctl('groups', $row->{topic});
    like($run->{out}, qr/^\Q$row->{stream}\E +$row->{group} +$row->{lag} +$row->{pending} +- +$row->{consumers} +0 +0$/m, "$row->{topic} shows the same");
}
$run = ctl('status');
like($run->{out}, qr/^default +streaming +0 +0\.00 s +\S+ +$sink->{published} +0 +0 +$sink->{position}$/m, 'status shows the sink');
like($run->{out}, qr/^\Q$wallet\E +${\($redis->cmd('XLEN', $wallet))} +billing +- /m, 'and the streams');

my $terminal = OutboxTest::Ctl::Terminal->new('outboxctl status');
like($terminal->finish, qr/\e\[1mSINK.*\e\[32mstreaming\e\[0m/s, 'a terminal gets colours');
for my $no ([ NO_COLOR => 1 ], [ TERM => 'dumb' ]) {
    $terminal = OutboxTest::Ctl::Terminal->new('outboxctl status', @$no);
    unlike($terminal->finish, qr/\e/, "but not with @$no");
}

# what a name may do to a terminal
$redis->cmd('XGROUP', 'CREATE', $wallet, "\e]0;owned\a\xe2\x80\xaeevil", 0);
$run = ctl('groups', 'wallet');
like($run->{out}, qr/\\x1b\]0;owned\\x07\\u\{202e\}evil/, 'names are shown with what a terminal would obey escaped');
unlike($run->{out}, qr/[\e\a]/, 'and nothing of that is left');
like(join(' ', map { $_->{group} } @{ ctl_json('groups', 'wallet')->{groups} }), qr/\e\]0;owned/, 'JSON has them as they are');
$redis->cmd('XGROUP', 'DESTROY', $wallet, "\e]0;owned\a\xe2\x80\xaeevil");

# what cannot be asked is said

$run = ctl('groups', 'nothing');
is($run->{status}, 1, 'a stream that is not there is no answer');
like($run->{err}, qr/there is no stream "outbox:\{nothing\}"/, 'and named');
$run = ctl('groups', 'no topic');
is($run->{status}, 2, 'what can be no topic is wrong usage');

my $gone = ctl('status', '--redis', 'unix:///nonexistent/redis.sock');
is($gone->{status}, 3, 'without Redis half an answer is not all');
like($gone->{out}, qr/^default +streaming.*could not connect to Redis at "\/nonexistent\/redis\.sock"/ms, 'the half that there is is shown');
my $half = ctl_json(3, 'status', '--redis', 'unix:///nonexistent/redis.sock');
is($half->{sinks}[0]{published}, $sink->{published}, 'for scripts, too');
is($half->{groups}, undef, 'what is unknown is null');
like($half->{redis_error}, qr/could not connect to Redis/, 'with the reason');
$run = ctl('groups', '--redis', 'unix:///nonexistent/redis.sock');
is($run->{status}, 3, 'no Redis');
like($run->{err}, qr/could not connect to Redis at "\/nonexistent\/redis\.sock".*\nhint: .*--redis/, 'is said with a hint');

$run = ctl('status', '-d', 'nowhere');
is($run->{status}, 3, 'no database');
like($run->{err}, qr/could not connect to PostgreSQL: .*database "nowhere" does not exist\nhint: .*PGHOST/, 'is said with a hint');
$run = ctl('status', '-d', 'host=/nonexistent');
is($run->{status}, 3, 'no server');
like($run->{err}, qr/could not connect to PostgreSQL: .*\/nonexistent/, 'is said, too');
$run = ctl('status', '-d', 'template1');
is($run->{status}, 3, 'no extension');
like($run->{err}, qr/database "template1" does not have the extension outbox\nhint: .*CREATE EXTENSION outbox/, 'is said with a hint');
$node->safe_psql('postgres', 'CREATE ROLE nobody_special LOGIN');
$run = ctl('status', '-d', 'dbname=postgres user=nobody_special');
is($run->{status}, 3, 'no right to a view');
like($run->{err}, qr/permission denied.*\nhint: .*GRANT outbox_reader TO "nobody_special"/, 'is said with what to grant');
$node->safe_psql('postgres', 'GRANT outbox_reader TO nobody_special');
is(ctl('status', '-d', 'dbname=postgres user=nobody_special')->{status}, 0, 'which is enough');

done_testing();
