# What is right and wrong about a round, from plain data alone: no server, no file, no clock. Everything is a hash join or
# one pass, so a round of any size is judged in the time that it takes to read it.
#
#   my $verdict = Faults::Checker::check(
#       history => [ { t => ns, op => uuid, do => 'invoke', kind => 'commit' }, { t =>, op =>, do => 'ok' }, ... ],
#       truth => [ { op, event_id, aggregate, version, digest }, ... ],       # what is committed after all
#       entries => [ { key, id, event_id, aggregate, version, digest }, ... ] # the streams at the end, each in its order
#       tap => [ { ns, key, id, event_id, aggregate, version, digest }, ... ] # what a reader saw, when it saw it
#       inboxes => [ 'group', ... ], effects => [ { event_id, consumer }, ... ],   # groups with an inbox, and its rows
#       journals => { group => [ { ns, what => 'start', event_id, aggregate, version, pid, attempt }, ... ] },
#                                           # what: start, end, failed; stalled: the process did not run for "version" ns before
#       deaths => { pid => [ ns, ns ] },    # handlers that were killed: when they were last seen alive, and found dead
#       state => { lag_events => 0, ... }, wrong => [ 'finding: text', ... ], # what the round saw itself
#       fault => { begin => ns, end => ns, hit => 1, ... });
#
# The fault says what it does to the checks:
#   hit            it happened, as far as the round can tell
#   needs_flight   and it only counts if committed events were on their way when it did
#   crash          PostgreSQL may lose commits that were acknowledged with synchronous_commit = off
#   limit          seconds until events that are emitted afterwards arrive
#   allowed        { finding => 1 }: what may be, as this fault makes it so by nature
#   enough         events that must have been published for a round to say anything
#
# The verdict: "failed" if there is a finding, "invalid" if the oracle contradicts itself (then nothing else means
# anything), "unknown" if the fault did not land or too little happened, else "passed".
package Faults::Checker;

use strict;
use warnings;

# in this order they are reported
our @findings = qw(
    lost ghost duplicated reordered corrupt unordered vanished
    replayed unhandled handled_twice handled_again handled_ghost handled_order overlap
    dead_letter pending unsettled hostage slow stuck died
);

my $shown = 5;    # of each kind

sub check {
    my (%of) = @_;
    my $fault = $of{fault};
    my $allowed = $fault->{allowed} // {};
    my %found = map { $_ => 0 } @findings;
    my (%details, @invalid);
    my $blame = sub {
        my ($what, $text) = @_;
        return if $allowed->{$what};
        push @{ $details{$what} }, "$what: $text" if $found{$what}++ < $shown;
    };

    my $ops = classes($of{history}, \@invalid);
    my %truth = map { $_->{event_id} => $_ } @{ $of{truth} };
    push @invalid, 'an event is in truth twice' if keys %truth != @{ $of{truth} };
    my $count = ask_oracle($ops, $of{truth}, $fault, \@invalid);

    my $position = streams(\%truth, $of{entries}, $blame);
    versions(\%truth, $of{truth}, $position, $blame);
    emission_order($ops, $of{truth}, $position, $blame);
    my $first_seen = tapped(\%truth, $of{tap}, $of{entries}, $blame);
    handled(\%truth, $of{inboxes}, $of{effects}, $of{journals}, $of{deaths} // {}, $blame);
    settled($of{state}, $blame);
    for my $wrong (@{ $of{wrong} // [] }) {
        my ($what, $text) = split /: /, $wrong, 2;
        $blame->($what, $text);
    }

    my $in_flight = in_flight($ops, $of{truth}, $first_seen, $fault->{begin});
    my $recovered = recovery($ops, $of{truth}, $first_seen, $fault->{end});
    if (defined $fault->{limit} && defined $fault->{end}) {
        if (!defined $recovered) { $blame->('slow', 'nothing that was emitted after the fault has arrived') }
        elsif ($recovered > $fault->{limit}) {
            $blame->('slow', sprintf 'the first event after the fault arrived after %.1f s, at most %s are allowed',
                $recovered, $fault->{limit});
        }
    }

    my @why;
    push @why, 'the fault did not happen' unless $fault->{hit};
    push @why, 'no event was on its way' if $fault->{hit} && $fault->{needs_flight} && !$in_flight && !$count->{async_lost};
    push @why, sprintf 'only %d events', scalar @{ $of{truth} } if @{ $of{truth} } < ($fault->{enough} // 1);
    my $bad = 0;
    $bad += $found{$_} for @findings;
    return {
        verdict => @invalid ? 'invalid' : $bad ? 'failed' : @why ? 'unknown' : 'passed',
        %$count,
        committed => scalar @{ $of{truth} },
        published => scalar @{ $of{entries} },
        in_flight => $in_flight,
        recovered => $recovered,
        findings => { map { $_ => $found{$_} } grep { $found{$_} } @findings },
        why => [ @invalid, @why ],
        details => [ map { @{ $details{$_} // [] } } @findings ],
    };
}

# What became of each operation, as the one who asked for it knows. Without an answer nothing is known: "info".
sub classes {
    my ($history, $invalid) = @_;
    my %ops;
    for my $line (@$history) {
        my $op = $ops{ $line->{op} } //= {};
        if ($line->{do} eq 'invoke') {
            push @$invalid, "operation $line->{op} begins twice" if defined $op->{invoked};
            @$op{qw(invoked kind)} = @$line{qw(t kind)};
        } else {
            push @$invalid, "operation $line->{op} ends twice" if $op->{end};
            push @$invalid, "operation $line->{op} ends as \"$line->{do}\"" unless $line->{do} =~ /^(ok|fail|info)$/;
            @$op{qw(ended end)} = @$line{qw(t do)};
        }
        # asked for, and then what is left of it
        $op->{events} = $line->{events} if defined $line->{events};
    }
    for my $id (sort keys %ops) {
        push @$invalid, "operation $id ends without having begun" unless defined $ops{$id}{invoked};
        $ops{$id}{end} //= 'info';
    }
    return \%ops;
}

# ok means committed and fail means not: else the database has lost a commit, or the load is wrong.
sub ask_oracle {
    my ($ops, $truth, $fault, $invalid) = @_;
    my %count = (ok => 0, fail => 0, info => 0, info_committed => 0, async_lost => 0);
    my (%committed, %said);
    $committed{ $_->{op} } = 1 for @$truth;
    for my $id (sort keys %$ops) {
        my ($end, $kind) = @{ $ops->{$id} }{qw(end kind)};
        $count{$end}++;
        if ($end eq 'info' && $committed{$id}) { $count{info_committed}++ }
        if ($end eq 'fail' && $committed{$id}) {
            push @$invalid, "operation $id failed, and is committed" unless $said{fail}++;
        }
        if ($end eq 'ok' && !$committed{$id} && emits($ops->{$id})) {
            if ($kind eq 'async' && $fault->{crash}) { $count{async_lost}++ }
            else { push @$invalid, "operation $id ($kind) was committed, and is gone" unless $said{ok}++ }
        }
    }
    for my $id (sort keys %committed) {
        push @$invalid, "operation $id is committed, and nobody asked for it" unless $ops->{$id} || $said{unknown}++;
    }
    # versions are counted under a lock: they are 1, 2, 3, ... whatever was rolled back
    my %highest;
    my %n;
    for my $row (@$truth) {
        my $aggregate = $row->{aggregate};
        $n{$aggregate}++;
        $highest{$aggregate} = $row->{version} if $row->{version} > ($highest{$aggregate} // 0);
    }
    for my $aggregate (sort keys %n) {
        push @$invalid, "$aggregate has $n{$aggregate} events up to version $highest{$aggregate}"
            if $n{$aggregate} != $highest{$aggregate} && !$said{gap}++;
    }
    return \%count;
}

# A rollback is "fail". Savepoints may leave nothing of what is "ok".
sub emits { my ($op) = @_; return !defined $op->{events} || $op->{events} > 0 }

# The streams as they are in the end; the position of each event.
sub streams {
    my ($truth, $entries, $blame) = @_;
    my (%position, %taken, %last);
    for my $entry (@$entries) {
        my ($key, $id, $event_id) = @$entry{qw(key id event_id)};
        my $what = "$id in $key, event $event_id";
        $blame->('unordered', "$what, not above $last{$key}") if defined $last{$key} && above($last{$key}, $id) >= 0;
        $last{$key} = $id;
        $blame->('unordered', "$what, as in $taken{$id}") if defined $taken{$id};
        $taken{$id} = $key;
        my $true = $truth->{$event_id};
        if (!$true) {
            $blame->('ghost', "$what, version " . ($entry->{version} // '') . ' of ' . ($entry->{aggregate} // ''));
            next;
        }
        if ($position{$event_id}) {
            $blame->('duplicated', "$what, as at $position{$event_id}");
            next;
        }
        $position{$event_id} = $id;
        $blame->('corrupt', "$what: digest $entry->{digest} instead of $true->{digest}") if $entry->{digest} ne $true->{digest};
        $blame->('corrupt', "$what: $entry->{aggregate} $entry->{version} instead of $true->{aggregate} $true->{version}")
            if $entry->{aggregate} ne $true->{aggregate} || $entry->{version} != $true->{version};
    }
    for my $event_id (sort keys %$truth) {
        $blame->('lost', "event $event_id, version $truth->{$event_id}{version} of $truth->{$event_id}{aggregate}")
            unless $position{$event_id};
    }
    return \%position;
}

sub above {
    my ($first, $second) = map { [ split /-/ ] } @_;
    return $first->[0] <=> $second->[0] || $first->[1] <=> $second->[1];
}

# The events of an aggregate, by version, are at rising positions.
sub versions {
    my ($truth, $rows, $position, $blame) = @_;
    my %before;
    for my $row (sort { $a->{version} <=> $b->{version} } @$rows) {
        my $id = $position->{ $row->{event_id} } or next;
        my $before = $before{ $row->{aggregate} };
        $blame->('reordered', "version $row->{version} of $row->{aggregate} at $id, the one before it at $before")
            if defined $before && above($id, $before) <= 0;
        $before{ $row->{aggregate} } = $id if !defined $before || above($id, $before) > 0;
    }
    return;
}

# What was emitted after a COMMIT had returned is above all that was committed by it, over all streams; but for what is delayed.
sub emission_order {
    my ($ops, $truth, $position, $blame) = @_;
    my (%lowest, %highest);
    for my $row (@$truth) {
        my $id = $position->{ $row->{event_id} } or next;
        my $op = $row->{op};
        next if is_delayed($ops->{$op});
        $lowest{$op} = $id if !defined $lowest{$op} || above($id, $lowest{$op}) < 0;
        $highest{$op} = $id if !defined $highest{$op} || above($id, $highest{$op}) > 0;
    }
    my @begun = sort { $ops->{$a}{invoked} <=> $ops->{$b}{invoked} } grep { $lowest{$_} && defined $ops->{$_}{invoked} } keys %$ops;
    my @ended = sort { $ops->{$a}{ended} <=> $ops->{$b}{ended} } grep { $ops->{$_}{end} eq 'ok' } @begun;
    my $top = '0-0';
    for my $op (@begun) {
        while (@ended && $ops->{ $ended[0] }{ended} < $ops->{$op}{invoked}) {
            my $done = shift @ended;
            $top = $highest{$done} if above($highest{$done}, $top) > 0;
        }
        $blame->('unordered', "operation $op is at $lowest{$op}, and began after $top was committed")
            if above($lowest{$op}, $top) < 0;
    }
    return;
}

# What a reader saw: nothing that is not committed, also if it is gone again; and what it saw is still there, in its place.
sub tapped {
    my ($truth, $tap, $entries, $blame) = @_;
    my %stored = map { ("$_->{key} $_->{id}" => $_->{event_id}) } @$entries;
    my (%first, %place);
    for my $line (@$tap) {
        my ($event_id, $place) = ($line->{event_id}, "$line->{key} $line->{id}");
        my $stored = $stored{$place};
        if (!$truth->{$event_id}) {
            $blame->('ghost', "event $event_id was read at $place, and is gone") unless defined $stored;
            next;
        }
        if (!defined $stored) { $blame->('vanished', "event $event_id was read at $place, and is not there any more") }
        elsif ($stored ne $event_id) { $blame->('vanished', "event $event_id was read at $place, where $stored is now") }
        $blame->('duplicated', "event $event_id was read at $place and at $place{$event_id}")
            if defined $place{$event_id} && $place{$event_id} ne $place;
        $place{$event_id} //= $place;
        $first{$event_id} //= $line->{ns};
    }
    return \%first;
}

# Each event once: as the inbox has it, and as the journals of the others have it.
sub handled {
    my ($truth, $inboxes, $effects, $journals, $deaths, $blame) = @_;
    my %rows = map { $_ => {} } @$inboxes;
    $rows{ $_->{consumer} }{ $_->{event_id} }++ for @$effects;
    for my $group (sort keys %$journals) {
        my $inbox = $rows{$group};
        my (%done, %start);
        for my $line (@{ $journals->{$group} }) {
            $done{ $line->{event_id} }++ if $line->{what} eq 'end' && !$inbox;
            $start{ $line->{event_id} } //= $line if $line->{what} eq 'start';
        }
        my $times = $inbox // \%done;
        for my $event_id (sort keys %$truth) {
            my $n = $times->{$event_id} // 0;
            my $what = "event $event_id, version $truth->{$event_id}{version} of $truth->{$event_id}{aggregate}, by group $group";
            $blame->('unhandled', $what) unless $n;
            # handled again is what "at least once" allows, where the fault makes it so; twice in an inbox is never right
            $blame->($inbox ? 'handled_twice' : 'handled_again', "$what: $n times") if $n > 1;
        }
        for my $event_id (sort keys %$times) {
            $blame->('handled_ghost', "event $event_id by group $group") unless $truth->{$event_id};
        }
        my %latest;
        for my $line (sort { $a->{ns} <=> $b->{ns} } values %start) {
            my $latest = $latest{ $line->{aggregate} } // 0;
            $blame->('handled_order', "version $line->{version} of $line->{aggregate} after $latest, by group $group")
                if $line->{version} < $latest;
            $latest{ $line->{aggregate} } = $line->{version} if $line->{version} > $latest;
        }
        overlaps($group, $journals->{$group}, $deaths, $blame);
    }
    for my $group (grep { !$journals->{$_} } sort keys %rows) {
        $blame->('handled_ghost', "group $group has effects, and no journal");
    }
    return;
}

# While a handler runs no other one of its aggregate begins. One whose process died runs until then: it may have died as soon as
# it was no longer seen alive. One of the two whose process did not run meanwhile had lost what it held, and could not know.
sub overlaps {
    my ($group, $journal, $deaths, $blame) = @_;
    my %stalls;     # pid => [ [ from, to ], ... ]
    for my $line (grep { $_->{what} eq 'stalled' } @$journal) {
        push @{ $stalls{ $line->{pid} } }, [ $line->{ns} - $line->{version}, $line->{ns} ];
    }
    my %running;    # aggregate => line of its start
    for my $line (sort { $a->{ns} <=> $b->{ns} } grep { $_->{what} ne 'stalled' } @$journal) {
        my $aggregate = $line->{aggregate};
        my $running = $running{$aggregate};
        if ($line->{what} ne 'start') {
            delete $running{$aggregate} if $running && $running->{pid} == $line->{pid} && $running->{event_id} eq $line->{event_id};
            next;
        }
        if ($running) {
            my $died = $deaths->{ $running->{pid} };
            # the same process may try the same event again: its first attempt threw
            my $again = $running->{pid} == $line->{pid} && $running->{event_id} eq $line->{event_id};
            $blame->('overlap', "event $line->{event_id} of $aggregate in process $line->{pid} while $running->{event_id} "
                    . "was handled in $running->{pid}, by group $group")
                unless $again || defined $died && $died->[0] <= $line->{ns}
                || grep { $_->[0] < $line->{ns} && $_->[1] > $running->{ns} }
                map { @{ $stalls{ $_->{pid} } // [] } } $running, $line;
        }
        $running{$aggregate} = $line;
    }
    return;
}

# When all is quiet nothing is left over.
sub settled {
    my ($state, $blame) = @_;
    $blame->('dead_letter', "$state->{dead_letters} in the database") if $state->{dead_letters};
    for my $list ([ 'dead_letter', $state->{dlq} ], [ 'pending', $state->{pending} ]) {
        my ($what, $of) = @$list;
        $blame->($what, "$of->{$_} in $_") for grep { $of->{$_} } sort keys %{ $of // {} };
    }
    $blame->('unsettled', "$state->{lag_events} events are not confirmed") if $state->{lag_events};
    $blame->('unsettled', "$state->{unpublished} events are not published, by outbox.event") if $state->{unpublished};
    $blame->('unsettled', "$state->{held_streams} streams are held") if $state->{held_streams};
    $blame->('unsettled', "the sink is \"$state->{state}\"") if defined $state->{state} && $state->{state} !~ /^(streaming|idle)$/;
    return;
}

sub is_delayed { my ($op) = @_; return ($op->{kind} // '') eq 'delayed' }

# committed before the fault, and read only after it; what is delayed may have had no way to go yet
sub in_flight {
    my ($ops, $truth, $first_seen, $begin) = @_;
    return 0 unless defined $begin;
    my $n = 0;
    for my $row (@$truth) {
        my $op = $ops->{ $row->{op} };
        my $seen = $first_seen->{ $row->{event_id} };
        next if !$op || is_delayed($op);
        $n++ if $op->{end} eq 'ok' && $op->{ended} <= $begin && (!defined $seen || $seen > $begin);
    }
    return $n;
}

# Seconds from the end of the fault until the first event of an operation that began after it was read.
sub recovery {
    my ($ops, $truth, $first_seen, $end) = @_;
    return undef unless defined $end;
    my $first;
    for my $row (@$truth) {
        my $op = $ops->{ $row->{op} } or next;
        my $seen = $first_seen->{ $row->{event_id} } // next;
        next if !defined $op->{invoked} || $op->{invoked} < $end;
        $first = $seen if !defined $first || $seen < $first;
    }
    return defined $first ? ($first - $end) / 1e9 : undef;
}

1;
