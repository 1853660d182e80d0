# Filters: a sink gets the events that its topics and event_types say, no others, and each of them once and in order; what was
# sent under an old filter comes back under it when Redis has lost it.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $first = OutboxTest::Redis->new(name => 'first');
my $some = OutboxTest::Redis->new(name => 'some');
my $node = new_node(redis => $first, conf => "max_worker_processes = 16\noutbox.max_attempts = 3\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

one("SELECT outbox.create_sink('some', '" . $some->url . q{', topics => '{billing,shop,audit}', event_types => '{*.*.paid,shop.*}',
    stream => 'some:{%t}')});

# what an event has to be, in words that share nothing with the code
my %phases = (
    1 => sub { my ($topic, $type) = @_; return $topic =~ /^(billing|shop|audit)$/ && $type =~ /^[^.]+\.[^.]+\.paid$|^shop\./ },
    2 => sub { my ($topic, $type) = @_; return $topic !~ /^wallet$/ && $type =~ /^[^.]+\.[^.]+\.paid$|^shop\./ },
    3 => sub { 1 },
);
my %phase_of;    # event_id => the phase that it was committed in

sub load {
    my ($phase) = @_;
    my $load = start_load($node, clients => 2, rate => 150);
    my $before = $first->published;
    poll_until(sub { $first->published > $before + 150 }, 'events are published');
    kill_worker($node, 'postgres', 'KILL', 2);
    poll_until(sub { $first->published > $before + 250 }, 'and more');
    $load->stop;
    wait_settled($node);
    ok(flush($node, 'postgres', '30 s', 'some'), 'the sink is flushed');
    $phase_of{$_} //= $phase for split /\n/, one('SELECT event_id FROM truth');
}

sub some_entries {
    my @entries;
    for my $key (@{ $some->cmd('KEYS', 'some:*') }) {
        push @entries, map { my ($id, $fields) = @$_; "$key $id $fields->{event_id}" } $some->entries($key);
    }
    return [ sort @entries ];
}

sub ok_filtered {
    my ($name) = @_;
    my @expected;
    for my $row (split /\n/, one('SELECT event_id, topic, event_type FROM outbox.stored_event_with_topic')) {
        my ($id, $topic, $type) = split /\|/, $row;
        push @expected, "some:{$topic} $id" if $phases{ $phase_of{$id} }->($topic, $type);
    }
    my @found = sort map { my ($key, undef, $id) = split / /; "$key $id" } @{ some_entries() };
    cmp_ok(scalar @expected, '>', 20, 'there are events for it');
    is_deeply(\@found, [ sort @expected ], $name);
    is(one(q{SELECT count(*) FROM outbox.verify('some')}), 0, 'verify says so, too');
    my %at = map { my ($key, $id, $event) = split / /; $event => "$key $id" } @{ some_entries() };
    my %said = map { my ($event, $stream, $position) = split /\|/; $event => "$stream $position" }
        split /\n/, one(q{SELECT event_id, stream, position FROM outbox.sink_event WHERE sink = 'some' AND status = 'published'});
    is_deeply(\%said, \%at, 'and so does outbox.sink_event');
    is(one(q{SELECT lag_events FROM outbox.stat_sink WHERE sink = 'some'}), 0, 'nothing is missing from it');
}

one(q{CREATE VIEW outbox.stored_event_with_topic AS SELECT event_id, COALESCE(topic, split_part(event_type, '.', 1)) AS topic, event_type
    FROM outbox.stored_event});
load(1);
ok_filtered('it has what its filters take');
ok_streams($node, $first, 'the sink without filters has everything');

# an entry that is not the sink's: of an event that its filters do not take, just where it would be if they did
my $stranger = one(q{SELECT outbox.emit('wallet.transfer.done', '{}', topic => 'audit')});
ok(flush($node, 'postgres', '30 s', 'some'), 'an event that it does not take is behind it');
$phase_of{$stranger} = 1;
my $where = one("SELECT l.ms || '-' || l.n FROM outbox.stored_event e, outbox.locate(2, e.anchor, e.xid, e.seq, 0) l WHERE e.event_id = '$stranger'");
$some->cmd('XADD', 'some:{audit}', $where, 'event_id', $stranger);
is(one(q{SELECT finding, stream, found, event_id FROM outbox.verify('some')}), "extra|some:{audit}|$where|$stranger", 'verify names it');
$some->cmd('XDEL', 'some:{audit}', $where);

is(one(q{SELECT outbox.alter_sink('some', topics => '{billing,shop,audit,identity}')}), '', 'its topics are altered');
load(2);
ok_filtered('what is committed from then on goes by the new filter');
one(q{SELECT outbox.alter_sink('some', topics => '{*}', event_types => '{*}')});
load(3);
ok_filtered('and then everything');

my $before = some_entries();
$some->cmd('FLUSHALL');
one(q{SELECT outbox.emit('audit.trail.loss', '{}')});
poll_until(sub { stat_sink($node, 'postgres', 'some')->{healed} > 0 && stat_sink($node, 'postgres', 'some')->{state} eq 'streaming' }, 'Redis has lost it all, and it is healed');
ok(flush($node, 'postgres', '30 s', 'some'), 'the sink is flushed');
my %was = map { $_ => 1 } @$before;
is_deeply([ grep { $was{$_} } @{ some_entries() } ], $before, 'what was sent under each filter is there again, at its position');
is(@{ some_entries() }, @$before + 1, 'and nothing else');

# to another Redis: it gets it all, too

my $there = some_entries();
my $elsewhere = OutboxTest::Redis->new(name => 'elsewhere');
one("SELECT outbox.alter_sink('some', url => '" . $elsewhere->url . "')");
$some->stop;
one(q{SELECT outbox.emit('audit.trail.moved', '{}')});
ok(flush($node, 'postgres', '30 s', 'some'), 'the sink has another URL');
$some = $elsewhere;
%was = map { $_ => 1 } @$there;
is_deeply([ grep { $was{$_} } @{ some_entries() } ], $there, 'all that is retained is there, at its position');
is(@{ some_entries() }, @$there + 1, 'and nothing else');

# a stream that refuses: only what the sink takes becomes a dead letter

one(q{SELECT outbox.alter_sink('some', topics => '{poison}', event_types => '{*.*.paid}')});
$some->cmd('SET', 'some:{poison}', 'not a stream');
one(q{SELECT outbox.emit('poison.letter.' || CASE WHEN i % 2 = 0 THEN 'paid' ELSE 'sent' END, '{}') FROM generate_series(1, 10) i});
poll_until(sub { flush($node, 'postgres', '10 s', 'some') && stat_sink($node, 'postgres', 'some')->{dead_letters} > 0 }, 'there are dead letters');
is(one(q{SELECT event_type, count(*) FROM outbox.dead_letter WHERE sink_id = 2 GROUP BY 1}), 'poison.letter.paid|5', 'of the events that it takes');
my ($status, undef, $error) = $node->psql('postgres', q{SELECT outbox.drop_sink('some')});
isnt($status, 0, 'it is not dropped with them');
like($error, qr/sink "some" has 5 dead letters/, 'as the error says');
is(($node->psql('postgres', q{SELECT outbox.drop_sink('some', discard_dead_letters => true)}))[0], 0, 'unless that is wanted');

done_testing();
