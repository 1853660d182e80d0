# Dead letters of a sink: redriven ones come to the ends of their streams, in their order, once, whatever dies meanwhile; discarded
# ones never do. What other sinks have is not touched.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
my $other = OutboxTest::Redis->new(name => 'other');
my $node = new_node(redis => $redis, conf => "outbox.max_attempts = 2\noutbox.retry_min = '10ms'\noutbox.retry_max = '20ms'\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub dead { my ($sink) = @_; return one('SELECT count(*) FROM outbox.dead_letter WHERE sink_id = ' . ($sink // 1)) }
sub verified { my ($sink) = @_; return one("SELECT COALESCE(string_agg(v::text, E'\\n'), 'in order') FROM outbox.verify('$sink') v") }

# The ids of the events in a stream, in order.
sub ids { my ($from, $key) = @_; return map { $_->[1]{event_id} } $from->entries($key) }

sub settle {
    poll_until(sub { flush($node) && flush($node, 'postgres', '30 s', 'other') }, 'every event is published or dead');
    return;
}

# Emits until so many more events of the topic are dead letters.
sub let_die {
    my ($topic, $events) = @_;
    $redis->spoil("outbox:{$topic}");
    one(qq{SELECT outbox.emit('$topic.thing.done', format('{"n": %s}', i), aggregate_id => 'a', headers => '{"h": 1}') FROM generate_series(1, $events) i});
    settle();
    $redis->mend("outbox:{$topic}");
    return split /\n/, one("SELECT event_id FROM outbox.dead_letter WHERE sink_id = 1 AND topic = '$topic' "
        . q{ORDER BY string_to_array(position, '-')::bigint[]});
}

one("SELECT outbox.create_sink('other', '" . $other->url . "')");
one(qq{SELECT outbox.emit('$_.thing.begun', '{}')}) for 'shop', 'audit';
settle();

my @letters = let_die('shop', 700);    # more than one chunk
is(@letters, 700, 'there are dead letters');
one(q{SELECT outbox.emit('shop.thing.later', '{}')});
settle();
is(verified('default'), 'in order', 'verify() knows them');

# who may, and what must be said

for my $function ('redrive', 'discard') {
    one('CREATE ROLE reader LOGIN; GRANT outbox_reader, outbox_emitter TO reader; CREATE ROLE admin LOGIN; GRANT outbox_admin TO admin')
        if $function eq 'redrive';
    for my $case (
        [ "SET ROLE reader; SELECT outbox.$function(sink => 'default')", qr/permission denied for function $function/ ],
        [ "SELECT outbox.$function()",                                    qr/it must be said which dead letters are meant/ ],
        [ "SELECT outbox.$function(sink => 'no')",                        qr/sink "no" does not exist/ ],
        [ "SELECT outbox.$function(gen_random_uuid())",                   qr/is no dead letter/ ],
        [ "SELECT outbox.$function('$letters[0]', 'other')",              qr/event $letters[0] is no dead letter/ ]) {
        my ($status, undef, $error) = $node->psql('postgres', $case->[0]);
        ok($status != 0 && $error =~ $case->[1], "$case->[0] is refused") or diag($error);
    }
}

# one, taken back and then not

one("BEGIN; SELECT outbox.redrive('$letters[0]'); ROLLBACK");
is(dead(), 700, 'a redrive that is rolled back is none');
is(one("SET ROLE admin; SELECT outbox.redrive('$letters[0]')"), 1, 'one is redriven, by an admin');
settle();
is((ids($redis, 'outbox:{shop}'))[-1], $letters[0], 'it is at the end of its stream');
my ($entry) = grep { $_->[1]{event_id} eq $letters[0] } $redis->entries('outbox:{shop}');
is("$entry->[1]{payload} $entry->[1]{headers} $entry->[1]{aggregate_id}", '{"n": 1} {"h": 1} a', 'as it was emitted');
is(one("SELECT status, position FROM outbox.event WHERE event_id = '$letters[0]'"), "published|$entry->[0]", 'outbox.event says where');
is(scalar(grep { $_ eq $letters[0] } ids($other, 'outbox:{shop}')), 1, 'the other sink has it once');
is(one("SELECT count(*), count(DISTINCT position) FROM outbox.sink_event WHERE event_id = '$letters[0]'"), '2|2', 'each sink has one row of it');
is(verified($_), 'in order', "verify() finds $_ in order") for 'default', 'other';

# discarded

is(one("SELECT outbox.discard('$letters[1]')"), 1, 'one is discarded');
is(one("SELECT status, position IS NOT NULL FROM outbox.event WHERE event_id = '$letters[1]'"), 'discarded|t', 'outbox.event says so');
is(one(q{SELECT outbox.discard(topic => 'shop', since => now() + '1 h')}), 0, 'no letter is of a time to come');
is(one(q{SELECT outbox.discard(event_type => 'shop.thing.begun', until => now())}), 0, 'or of a type that has none');

# all of them, in the middle of everything

my @before = ids($redis, 'outbox:{shop}');
is(one(q{SELECT outbox.redrive(topic => 'shop', sink => 'default')}), 698, 'the others are redriven');
is(one(q{SELECT outbox.redrive(topic => 'shop', sink => 'default')}), 0, 'once');
wait_recovered($node, kill_worker($node));
crash($node);
$node->start;
settle();
is_deeply([ ids($redis, 'outbox:{shop}') ], [ @before, @letters[ 2 .. 699 ] ], 'they come once and in their order, though the worker and the server are killed');
is(verified($_), 'in order', "verify() finds $_ in order") for 'default', 'other';
is(dead(), 0, 'no dead letter is left');
ok_positions($node, $redis, 'outbox.event agrees with Redis');

# Redis loses all of it

$redis->kill9;
$redis->wipe->start;
settle();
poll_until(sub { $redis->published == @before + 699 }, 'all is there again');
is_deeply([ ids($redis, 'outbox:{shop}') ], [ @before, @letters[ 2 .. 699 ] ], 'what Redis loses later is healed, in the same order');
is(verified('default'), 'in order', 'verify() finds it in order');

# once more dead

@letters = let_die('audit', 3);
$redis->spoil('outbox:{audit}');
is(one(q{SELECT outbox.redrive(sink => 'default')}), 3, 'they are redriven while the stream is still wrong');
settle();
is(dead(), 3, 'and are dead letters again');
$redis->mend('outbox:{audit}');
is(one(q{SELECT outbox.redrive(sink => 'default')}), 3, 'to be redriven again');
settle();
is_deeply([ (ids($redis, 'outbox:{audit}'))[ -3 .. -1 ] ], \@letters, 'in their order');
is(verified('default'), 'in order', 'verify() finds it in order');
ok_positions($node, $redis, 'outbox.event agrees with Redis');

# The database goes back to before they were published; Redis does not.

my @last = let_die('audit', 3);
one(q{SELECT outbox.pause('default')});
# (stat_sink says so at once, the worker when it knows)
poll_until(sub { one('SELECT state FROM outbox.worker_state() WHERE sink_id = 1') eq 'paused' }, 'the sink is paused');
one(q{SELECT outbox.emit('audit.thing.later', '{}')});
one(q{SELECT outbox.redrive(topic => 'audit')});
$node->stop;
my $data = $node->data_dir;
system('cp', '-a', $data, "$data.before") == 0 or die 'cp failed';
$node->start;
one(q{SELECT outbox.resume('default')});
settle();
my @published = ids($redis, 'outbox:{audit}');
is_deeply([ @published[ -3 .. -1 ] ], \@last, 'they are published');
$node->stop;
system("rm -rf '$data' && mv '$data.before' '$data'") == 0 or die 'mv failed';
$node->start;
one(q{SELECT outbox.resume('default')});
settle();
is_deeply([ ids($redis, 'outbox:{audit}') ], \@published, 'a restored database finds the redriven ones in their stream, and sends none again');
is(verified('default'), 'in order', 'verify() finds it in order');
ok_positions($node, $redis, 'outbox.event agrees with Redis');

done_testing();
