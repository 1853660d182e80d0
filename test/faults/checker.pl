# The checker can fail: a round is made by hand in which all is right, and then each thing that can be wrong is made wrong,
# one at a time. What a fault allows is green, and only that.
use strict;
use warnings;
use Faults::Checker;
use Test::More;

# Three aggregates over two streams; an operation every 10 ns, acknowledged 4 ns later, read 3 ns after that, handled by two
# groups. The fault is from 103 to 110.
sub round {
    my (%round) = (history => [], truth => [], entries => [], tap => [], effects => [], inboxes => ['inbox'], deaths => {},
        wrong => [], journals => { inbox => [], redis => [] },
        state => { lag_events => 0, dead_letters => 0, held_streams => 0, state => 'streaming', pending => {}, dlq => {} },
        fault => { begin => 105, end => 110, hit => 1, needs_flight => 1, limit => 5, enough => 10 });
    my %version;
    for my $i (1 .. 20) {
        my ($op, $event_id) = ("op$i", "event$i");
        my $aggregate = 'a' . $i % 3;
        my %event = (event_id => $event_id, aggregate => $aggregate, version => ++$version{$aggregate}, digest => "d$i");
        my %entry = (%event, key => 'outbox:{t' . ($i % 3 % 2) . '}', id => "1000-$i");
        push @{ $round{history} }, { t => 10 * $i, op => $op, do => 'invoke', kind => 'commit', events => 1 },
            { t => 10 * $i + 4, op => $op, do => 'ok' };
        push @{ $round{truth} }, { %event, op => $op };
        push @{ $round{entries} }, {%entry};
        push @{ $round{tap} }, { %entry, ns => 10 * $i + 7 };
        push @{ $round{effects} }, { event_id => $event_id, consumer => 'inbox' };
        for my $group (qw(inbox redis)) {
            push @{ $round{journals}{$group} },
                map { { %event, ns => 10 * $i + $_->[0], what => $_->[1], pid => 7 + $i % 2, attempt => 1 } }
                [ 8, 'start' ], [ 9, 'end' ];
        }
    }
    push @{ $round{history} }, { t => 300, op => 'rolled back', do => 'invoke', kind => 'rollback', events => 2 },
        { t => 301, op => 'rolled back', do => 'fail' },
        { t => 302, op => 'unknown', do => 'invoke', kind => 'commit', events => 2 };
    return \%round;
}

# the verdict about a round that was changed, and what was found
sub verdict {
    my ($change) = @_;
    my $round = round();
    local $_ = $round;
    $change->($round) if $change;
    return Faults::Checker::check(%$round);
}

sub found {
    my $verdict = verdict(@_);
    return join ' ', $verdict->{verdict}, map { "$_=$verdict->{findings}{$_}" } sort keys %{ $verdict->{findings} };
}

# without the i-th event in one of the lists
sub without { my ($list, $i) = @_; return [ grep { $_->{event_id} ne "event$i" } @$list ] }
# in the streams, and as it was read
sub entry { my ($round, $i) = @_; return grep { $_->{event_id} eq "event$i" } @{ $round->{entries} }, @{ $round->{tap} } }
sub start_of {
    my ($round, $i) = @_;
    return (grep { "$_->{event_id} $_->{what}" eq "event$i start" } @{ $round->{journals}{redis} })[0];
}
sub another { my ($round, $i, %change) = @_; return { %{ (entry($round, $i))[0] }, ns => 900, %change } }

my $good = verdict();
is($good->{verdict}, 'passed', 'a round in which all is right passes') or diag(explain($good));
is("@$good{qw(ok fail info info_committed committed published in_flight)}", '20 1 1 0 20 20 1', 'and is counted');
cmp_ok(abs($good->{recovered} - 7e-9), '<', 1e-12, 'the time to recover is that of the first event emitted after the fault');

# streams
is(found(sub { $_->{entries} = without($_->{entries}, 5); $_->{tap} = without($_->{tap}, 5) }), 'failed lost=1',
    'a committed event that is in no stream is lost');
is(found(sub { $_->{entries} = without($_->{entries}, 5) }), 'failed lost=1 vanished=1', 'also when it was there once');
is(found(sub { push @{ $_->{entries} }, another($_, 5, id => '2000-1', event_id => 'nobody') }), 'failed ghost=1',
    'an entry that nobody committed is a ghost');
is(found(sub { push @{ $_->{tap} }, another($_, 5, id => '2000-1', event_id => 'nobody') }), 'failed ghost=1',
    'also when it is gone again');
is(found(sub { push @{ $_->{entries} }, another($_, 5, id => '2000-1') }), 'failed duplicated=1', 'a second entry of an event');
is(found(sub { push @{ $_->{tap} }, another($_, 5, id => '2000-1') }), 'failed duplicated=1 vanished=1',
    'also when one of the two is gone again');
is(found(sub {
    my ($first, $second) = map { (entry($_[0], $_))[0] } 5, 8;
    my ($seen, $later) = map { (entry($_[0], $_))[1] } 5, 8;
    for my $pair ([ $first, $second ], [ $seen, $later ]) {
        my %kept = %{ $pair->[0] };
        @{ $pair->[0] }{qw(event_id version digest)} = @{ $pair->[1] }{qw(event_id version digest)};
        @{ $pair->[1] }{qw(event_id version digest)} = @kept{qw(event_id version digest)};
    }
}), 'failed reordered=1 unordered=3', 'two events of an aggregate that have changed places');
is(found(sub { $_->{entries}[6]{digest} = 'other' }), 'failed corrupt=1', 'a payload that is another');
is(found(sub { $_->{entries}[6]{version} = 9 }), 'failed corrupt=1', 'an entry that names another version');
is(found(sub { $_->{id} = '999-1' for entry($_, 9) }), 'failed reordered=1 unordered=2', 'a position below the one before it');
is(found(sub { $_->{id} = '1000-4' for entry($_, 5) }), 'failed unordered=1', 'a position that another stream has');
is(found(sub { $_->{id} = '1000-0', $_->{key} = 'outbox:{alone}' for entry($_, 2) }), 'failed unordered=1',
    'an event below one that was committed before it was emitted, in another stream');
is(found(sub {
    $_->{kind} = 'delayed' for grep { $_->{op} eq 'op2' } @{ $_->{history} };
    $_->{id} = '1000-0', $_->{key} = 'outbox:{alone}' for entry($_, 2);
}), 'passed', 'which may be where the event was delayed');

is(found(sub { $_->{wrong} = ['replayed: its copy is another'] }), 'failed replayed=1', 'a replay that is not what it is to be');

# handlers
is(found(sub { $_->{effects} = without($_->{effects}, 5) }), 'failed unhandled=1', 'an event without an effect in the inbox');
is(found(sub { push @{ $_->{effects} }, { event_id => 'event5', consumer => 'inbox' } }), 'failed handled_twice=1', 'one with two');
is(found(sub { push @{ $_->{effects} }, { event_id => 'nobody', consumer => 'inbox' } }), 'failed handled_ghost=1',
    'one of nobody');
is(found(sub { $_->{effects} = [] }), 'failed unhandled=20', 'an inbox without any');
is(found(sub { push @{ $_->{effects} }, { event_id => 'event5', consumer => 'other' } }), 'failed handled_ghost=1',
    'an effect of a group that there is not');
is(found(sub { $_->{journals}{redis} = without($_->{journals}{redis}, 5) }), 'failed unhandled=1', 'an event that was not handled');
is(found(sub {
    $_->{journals}{redis} = [ grep { "$_->{event_id} $_->{what}" ne 'event5 end' } @{ $_->{journals}{redis} } ];
    $_->{deaths}{8} = [ 60, 60 ];
}), 'failed unhandled=1', 'one whose handler never came to its end');
my $again = sub {
    push @{ $_->{journals}{redis} }, map { { %{ $_->[0] }, ns => $_->[0]{ns} + 500 } } map { [$_] }
        grep { $_->{event_id} eq 'event5' } @{ $_->{journals}{redis} };
};
is(found($again), 'failed handled_again=1', 'one that was handled again');
is(found(sub { $again->(); $_->{fault}{allowed} = { handled_again => 1 } }), 'passed', 'which some faults allow');
is(found(sub {
    push @{ $_->{effects} }, { event_id => 'event5', consumer => 'inbox' };
    $_->{fault}{allowed} = { handled_again => 1 };
}), 'failed handled_twice=1', 'but never to an inbox');
is(found(sub { $_->{ns} += 100 for grep { $_->{event_id} eq 'event5' } @{ $_->{journals}{redis} } }),
    'failed handled_order=1', 'events of an aggregate that are handled out of order');
is(found(sub { for (grep { "$_->{event_id} $_->{what}" eq 'event5 end' } @{ $_->{journals}{redis} }) { $_->{ns} += 35 } }),
    'failed overlap=1', 'handlers of an aggregate that overlap');
my $unfinished = sub {
    $_->{journals}{redis} = [ sort { $a->{ns} <=> $b->{ns} } map {
        $_->{event_id} ne 'event5' ? $_ : $_->{what} eq 'start' ? ($_, { %$_, ns => 70, pid => 9 }) : { %$_, ns => 71, pid => 9 }
    } @{ $_->{journals}{redis} } ];
};
is(found(sub { $unfinished->(); $_->{deaths}{8} = [ 65, 69 ] }), 'passed', 'a handler that was killed is over');
is(found(sub { $unfinished->(); $_->{deaths}{8} = [ 69, 75 ] }), 'passed', 'also when it was found dead later');
is(found(sub { $unfinished->(); $_->{deaths}{8} = [ 71, 75 ] }), 'failed overlap=1', 'and goes on until then');
my $failing = sub { my ($ns) = @_; push @{ $_->{journals}{redis} }, { %{ start_of($_, 5) }, ns => $ns, what => 'failed' } };
is(found(sub { $unfinished->(); $failing->(60) }), 'passed', 'a handler that failed is over');
is(found(sub { $unfinished->(); $failing->(72) }), 'failed overlap=1', 'and not before');
my $stalled = sub {
    my ($ns, $pid) = @_;
    push @{ $_->{journals}{redis} },
        { ns => $ns, what => 'stalled', event_id => '-', aggregate => '-', version => 5, pid => $pid, attempt => 0 };
};
for my $pid (8, 9) {
    is(found(sub { $unfinished->(); $stalled->(74, $pid) }), 'passed', 'one whose process did not run cannot know');
}
is(found(sub { $unfinished->(); $stalled->(56, 8) }), 'failed overlap=1', 'if that was at the time');
is(found(sub { $unfinished->(); $stalled->(74, 7) }), 'failed overlap=1', 'and one of the two processes');

# when all is quiet
is(found(sub { $_->{state}{dead_letters} = 2 }), 'failed dead_letter=1', 'dead letters in the database');
is(found(sub { $_->{state}{dlq} = { 'outbox:{t0}:dlq:redis' => 1 } }), 'failed dead_letter=1', 'or in Redis');
is(found(sub { $_->{state}{pending} = { redis => 1 } }), 'failed pending=1', 'pending entries');
is(found(sub { $_->{state}{lag_events} = 1 }), 'failed unsettled=1', 'events that are not confirmed');
is(found(sub { $_->{state}{unpublished} = 1 }), 'failed unsettled=1', 'events that the database does not call published');
is(found(sub { $_->{state}{held_streams} = 1 }), 'failed unsettled=1', 'streams that are held');
is(found(sub { $_->{state}{state} = 'backing off' }), 'failed unsettled=1', 'a sink that does not work');
is(found(sub { $_->{wrong} = [ 'stuck: the consumers have not come to an end', 'died: a consumer' ] }), 'failed died=1 stuck=1',
    'and what the round has seen itself');

# the fault
is(found(sub { $_->{fault}{hit} = 0 }), 'unknown', 'a fault that did not happen proves nothing');
is(found(sub { $_->{fault}{begin} = 108 }), 'unknown', 'nor one that met no event on its way');
is(found(sub { $_->{fault}{begin} = 108; $_->{fault}{needs_flight} = 0 }), 'passed', 'where that is needed');
is(found(sub { $_->{fault}{enough} = 21 }), 'unknown', 'nor a round in which little happened');
is(found(sub { $_->{fault}{hit} = 0; $_->{state}{lag_events} = 1 }), 'failed unsettled=1',
    'but what is wrong is wrong all the same');
is(found(sub { $_->{fault}{limit} = 1e-9 }), 'failed slow=1', 'a recovery that takes too long');
is(found(sub { $_->{fault}{end} = 205 }), 'failed slow=1', 'or does not come');

# the oracle
is(found(sub { $_->{history}[1]{do} = 'fail' }), 'invalid', 'a failed operation that is committed is a fault of the round');
is(found(sub {
    $_->{truth} = without($_->{truth}, 20);
    $_->{history}[0]{op} = $_->{history}[1]{op} = 'op21';
}), 'invalid ghost=1 handled_ghost=2', 'and so is an acknowledged one that is gone');
my $lost_tail = sub {
    my $round = $_;
    $round->{history}[38]{kind} = 'async';
    $round->{$_} = without($round->{$_}, 20) for qw(truth entries tap effects);
    $round->{journals}{$_} = without($round->{journals}{$_}, 20) for qw(inbox redis);
};
is(found(sub { $lost_tail->() }), 'invalid', 'also without synchronous_commit');
is(found(sub { $lost_tail->(); $_->{fault}{crash} = 1 }), 'passed', 'unless the server crashed');
is(found(sub { $lost_tail->(); $_->{fault}{crash} = 1; $_->{entries} = round()->{entries} }), 'failed ghost=1',
    'and then its entry is a ghost');
is(found(sub { $lost_tail->(); $_->{history}[38]{kind} = 'commit'; $_->{fault}{crash} = 1 }), 'invalid',
    'what was committed durably is never gone');
is(found(sub { $_->{truth}[19]{op} = 'nobody' }), 'invalid', 'what nobody asked for is not committed');
is(found(sub { $_->{truth}[19]{version}++; $_->{version}++ for entry($_, 20) }), 'invalid', 'versions have no gap');
is(found(sub { push @{ $_->{history} }, { t => 400, op => 'op3', do => 'ok' } }), 'invalid', 'an operation ends once');
is(found(sub { splice @{ $_->{history} }, 1, 1 }), 'passed', 'without an answer nothing is known');
is(found(sub { splice @{ $_->{history} }, 39, 1; my $r = $_; $r->{$_} = without($r->{$_}, 20) for qw(truth entries tap effects);
    $r->{journals}{$_} = without($r->{journals}{$_}, 20) for qw(inbox redis) }), 'passed', 'whatever became of it');

done_testing();
