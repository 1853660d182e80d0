# The checker can fail. Each way in which a stream can be wrong is made by hand here, without the extension, on a load
# that the real generator wrote: a checker that never goes red proves nothing of what the other tests show.
use strict;
use warnings;
use OutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, preload => 0, extension => 0);

# stands in for the extension: keeps what a worker would append, in the order in which it would
$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA outbox;
CREATE TABLE outbox.kept (
    seq bigserial, event_id uuid, event_type text, aggregate_type text, aggregate_id text, version int,
    headers text, payload text, topic text);
CREATE FUNCTION outbox.emit(event_type text, payload text, aggregate_id text, aggregate_type text, version int,
        headers jsonb, topic text) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO outbox.kept (event_id, event_type, aggregate_type, aggregate_id, version, headers, payload, topic)
    VALUES (gen_random_uuid(), event_type, aggregate_type, aggregate_id, version, headers::text, payload,
        COALESCE(topic, split_part(event_type, '.', 1)))
    RETURNING event_id
$$;
SQL

run_load($node, clients => 4, transactions => 60);
my $left = $node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts');
is($left, 0, 'the load leaves nothing prepared');
is(committed($node), $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.kept'),
    'truth holds exactly the events that were committed');
my $gaps = $node->safe_psql('postgres', <<'SQL');
SELECT (SELECT last_value FROM outbox.kept_seq_seq) > count(*) FROM outbox.kept
SQL
is($gaps, 't', 'the load rolls back');

# seq order is commit order for each aggregate, as its row is locked
my @events = map {
    my @row = split /\|/, $_;
    $_ = pack 'H*', $_ for @row[ 2 .. 7 ];
    { n => $row[0], id => $row[1], key => "outbox:{$row[7]}", fields => [
        event_id => $row[1], event_type => $row[2], aggregate_type => 'load', aggregate_id => $row[3], version => $row[4],
        occurred_at => '2026-01-02T03:04:05.678901Z', headers => $row[5], payload => $row[6] ] };
} split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT row_number() OVER (ORDER BY seq), event_id, encode(event_type::bytea, 'hex'), encode(aggregate_id::bytea, 'hex'),
       encode(version::text::bytea, 'hex'), encode(COALESCE(headers, '')::bytea, 'hex'),
       encode(convert_to(payload, 'UTF8'), 'hex'), encode(topic::bytea, 'hex')
FROM outbox.kept ORDER BY seq
SQL

# appends the events at positions 1000-1, 1000-2, ...; each may be changed on the way
sub append {
    my ($change) = @_;
    $redis->cmd('FLUSHALL');
    my @entries = map { { %$_, fields => [ @{ $_->{fields} } ], position => "1000-$_->{n}" } } @events;
    @entries = $change->(@entries) if $change;
    my @errors = grep { ref eq 'OutboxTest::Redis::Error' }
        $redis->cmds(map { [ 'XADD', $_->{key}, $_->{position}, @{ $_->{fields} } ] } @entries);
    die "XADD: $errors[0]" if @errors;
}

# what the checker found, without the zeros and the totals
sub found {
    my $found = check_streams($node, $redis, @_);
    return join ' ', map { "$_=$found->{$_}" }
        grep { $found->{$_} && !/^(committed|published|details)$/ } sort keys %$found;
}

append();
ok_streams($node, $redis, 'the streams as they should be pass');
is(check_streams($node, $redis)->{published}, scalar @events, 'every entry was looked at');

append(sub { @_[ 0 .. 20, 22 .. $#_ ] });
is(found(), 'lost=1', 'a missing entry is a lost event');

append(sub { @_[ 0 .. $#_ - 3 ] });
is(found(), 'lost=3', 'the end of the streams may be missing too');

append(sub { @_, { %{ $_[5] }, position => '2000-1' } });
is(found(), 'duplicated=1', 'a second entry of an event is a duplicate');

append(sub {
    my $ghost = { %{ $_[5] }, position => '2000-1', fields => [ @{ $_[5]{fields} } ] };
    $ghost->{fields}[1] = '00000000-0000-7000-8000-000000000000';
    return @_, $ghost;
});
is(found(), 'ghost=1', 'an entry without a committed event is a ghost');
is(found(ignore => sub { $_[2]{event_id} =~ /^0{8}/ }), '', 'entries of another writer can be left out');

# two neighbours of one aggregate change places
append(sub {
    my ($first, $second) = next_of_same_aggregate(@_);
    @_[ $first, $second ] = ({ %{ $_[$second] }, position => $_[$first]{position} },
        { %{ $_[$first] }, position => $_[$second]{position} });
    return @_;
});
is(found(), 'out_of_order=1', 'an aggregate\'s later event before its earlier one is out of order');

for my $change (
    [ 'a changed payload' => sub { $_[0][15] =~ s/1\.50/1.5/ } ],
    [ 'a payload whose blanks were tidied' => sub { $_[0][15] =~ s/\r\n\t/ / } ],
    [ 'other headers' => sub { $_[0][13] = '{"a": 1}' } ],
    [ 'another version' => sub { $_[0][9]++ } ],
    [ 'a time in another form' => sub { $_[0][11] = '2026-01-02 03:04:05+00' } ],
    [ 'fields in another order' => sub { @{ $_[0] } = @{ $_[0] }[ 2, 3, 0, 1, 4 .. 15 ] } ],
    [ 'one field more' => sub { push @{ $_[0] }, extra => '' } ],
) {
    my ($what, $sub) = @$change;
    append(sub { $sub->($_[7]{fields}); return @_ });
    is(found(), 'corrupt=1', "$what is corrupt");
}

append(sub { $_[7]{key} = $_[7]{key} eq 'outbox:{audit}' ? 'outbox:{shop}' : 'outbox:{audit}'; return @_ });
is(found(), 'corrupt=1', 'an entry in another topic\'s stream is corrupt');

append(sub {
    my ($n) = grep { $_[$_]{key} ne $_[ $_ + 1 ]{key} } 0 .. $#_ - 1;
    $_[ $n + 1 ]{position} = $_[$n]{position};
    return @_;
});
is(found(), 'unordered_ids=1', 'one position in two streams is no total order');

$redis->cmd('FLUSHALL');
is(found(), 'lost=' . @events, 'empty streams have lost everything');
$redis->cmd('XADD', 'outbox:{shop}:dlq:group', '1-1', 'a', 'b');
is_deeply([ $redis->streams ], [], 'dead letters are no stream of events');

sub next_of_same_aggregate {
    my %before;
    for my $n (0 .. $#_) {
        my $aggregate_id = $_[$n]{fields}[7];
        return ($before{$aggregate_id}, $n) if defined $before{$aggregate_id};
        $before{$aggregate_id} = $n;
    }
}

# Redis

append();
$redis->kill9;
$redis->start;
is($redis->published, 0, 'without an append-only file a killed Redis comes back empty');

my $durable = OutboxTest::Redis->new(aof => 'always');
$durable->cmd('XADD', 'outbox:{t}', '5-1', 'a', 'b');
$durable->kill9->start;
is($durable->published, 1, 'with one it keeps its data');
$durable->restart(keep_data => 1);
is($durable->published, 1, 'also over a restart');
$durable->restart;
is($durable->published, 0, 'unless it is to come back empty');
$durable->cli('SET text a');
my @replies = $durable->cmds([ 'MULTI' ], [ 'XADD', 'text', '1-1', 'a', 'b' ], [ 'GET', 'text' ], [ 'EXEC' ]);
like($replies[3][0], qr/^WRONGTYPE/, 'an error inside EXEC is seen');
ok(!eval { $durable->cmd('XADD', 'text', '1-1', 'a', 'b') } && $@ =~ /^WRONGTYPE/, 'a refused command dies with its reason');

$durable->{timeout} = 0.2;
$durable->sigstop;
ok(!eval { $durable->cmd('PING') } && $@ =~ /no reply/, 'a stopped Redis gives no reply');
$durable->sigcont;
$durable->{timeout} = 30;
is($durable->cmd('PING'), 'PONG', 'and a continued one does');

# the proxy

my $proxy = OutboxTest::Proxy->new(to => $redis);
my $through = bless { %$redis, socket => $proxy->{path}, timeout => 30 }, 'OutboxTest::Redis';
delete $through->{connection};
$redis->cmd('DEL', 'n');
is($through->cmd('INCR', 'n'), 1, 'the proxy passes');

$proxy->swallow(0);
ok(!eval { $through->cmd('INCR', 'n') }, 'a swallowed reply never comes');
is($redis->cmd('GET', 'n'), 2, 'though Redis has executed the command');
is($proxy->stats->{cuts}, 1, 'and the connection was cut');
is($through->cmd('INCR', 'n'), 3, 'the next connection passes again');

$proxy->swallow(6);
my @partly = eval { $through->cmds([ 'INCR', 'n' ], [ 'INCR', 'n' ], [ 'INCR', 'n' ]) };
is(scalar @partly, 0, 'replies may be lost from the middle of a pipeline on');
is($redis->cmd('GET', 'n'), 6, 'all of which was executed');

$proxy->cut_request(10);
ok(!eval { $through->cmd('INCR', 'n') }, 'a cut request has no reply');
is($redis->cmd('GET', 'n'), 6, 'and half a command is not executed');

$proxy->dribble(1);
is($through->cmd('ECHO', 'in pieces'), 'in pieces', 'replies may arrive byte by byte');

$proxy->blackhole;
$through->{timeout} = 0.3;
ok(!eval { $through->cmd('PING') } && $@ =~ /no reply/, 'nothing comes out of a black hole');
$proxy->refuse;
ok(!eval { $through->cmd('PING') } && $@ !~ /no reply/, 'a refused connection fails at once');
$proxy->pass;
$through->{timeout} = 30;
is($through->cmd('PING'), 'PONG', 'and it passes again');
$proxy->inject("-ERR garbage\r\n");
ok(!eval { $through->cmd('PING') } && $@ =~ /garbage/, 'a reply may be anything');
$proxy->stop;

# the load goes on through a crash of the server, and ends with nothing open

$node->safe_psql('postgres', "CREATE FUNCTION outbox.flush(interval, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'");
my $load = start_load($node, clients => 4, weights => { commit => 1, async => 1, prepared => 2 });
my $durable_at = poll_until(sub { my $n = committed($node); $n > @events + 50 && $n }, 'the load has begun');
$node->safe_psql('postgres', 'CHECKPOINT');    # a crash may take back what was committed asynchronously and is not on the disk
crash($node);
ok(!defined eval { $node->safe_psql('postgres', 'SELECT 1') }, 'a crashed server is gone');
$node->start;
my $before = committed($node);
cmp_ok($before, '>=', $durable_at, 'what it had committed is there when it comes back');
poll_until(sub { committed($node) > $before + 50 }, 'the load goes on');
$load->stop;
wait_settled($node);
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'what the load left prepared was ended');
is(committed($node), $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.kept'),
    'and truth is still exactly what was committed');
is(check_streams($node, $redis)->{ghost}, 0, 'with no gap in any aggregate');

done_testing();
