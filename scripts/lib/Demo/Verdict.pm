# When all is quiet: every row of the ledger against every entry of the streams, and what the readers saw against both.
package Demo::Verdict;

use strict;
use warnings;
use Demo::Reader;

# every entry of the streams, by position: { stream, id, event_id, type, wallet, n }
sub entries {
    my ($redis, @streams) = @_;
    my @entries;
    for my $stream (@streams) {
        my $from = '-';
        while (1) {
            my $page = $redis->xrange($stream, $from, '+', 'COUNT', 2000);
            for my $item (@$page) {
                my %entry = (stream => $stream, id => $item->[0]);
                @entry{qw(event_id type wallet n)} = Demo::Reader::facts($item->[1]);
                push @entries, \%entry;
            }
            last if @$page < 2000;
            $from = "($page->[-1][0]";
        }
    }
    return sort { Demo::Reader::above($a->{id}, $b->{id}) } @entries;
}

# ledger: rows of [event_id, wallet, n]; entries: as above; seen: those of the readers; commits: for each session its
# transactions in the order in which they were committed, [how many of them were committed when it began, ids of its events];
# rolled_back: ids; statement: what the service wrote, rows of [event_id, topic, wallet, n]
sub compare {
    my (%of) = @_;
    my %count = (
        committed => scalar @{ $of{ledger} },
        published => scalar @{ $of{entries} },
        seen => scalar @{ $of{seen} },
        rolled_back => scalar @{ $of{rolled_back} },
        handled => scalar @{ $of{statement} },
        map { $_ => 0 } qw(lost duplicated ghosts wallet_order id_order unhandled handled_twice handled_order),
    );
    my %name = (lost => 'lost', duplicated => 'duplicated', ghosts => 'never committed', wallet_order => 'out of order',
        id_order => 'out of order', unhandled => 'not handled', handled_twice => 'handled twice',
        handled_order => 'handled out of order');
    my @details;
    my $blame = sub {
        my ($what, $text) = @_;
        push @details, "$name{$what}: $text" if $count{$what}++ < 3;
    };
    my %ledger = map { $_->[0] => $_ } @{ $of{ledger} };

    my (%id, %latest);
    my $before = '';
    for my $entry (@{ $of{entries} }) {
        my $what = "$entry->{id} in $entry->{stream}, event $entry->{event_id}";
        $blame->('id_order', "$what has the ID of another entry") if $entry->{id} eq $before;
        $before = $entry->{id};
        if (!$ledger{ $entry->{event_id} }) {
            $blame->('ghosts', $what);
        } elsif ($id{ $entry->{event_id} }) {
            $blame->('duplicated', "$what is at $id{$entry->{event_id}}, too");
        } else {
            $id{ $entry->{event_id} } = $entry->{id};
            my $latest = $latest{ $entry->{wallet} } // 0;
            $blame->('wallet_order', "$what is no. $entry->{n} of $entry->{wallet}, after $latest") if $entry->{n} < $latest;
            $latest{ $entry->{wallet} } = $entry->{n} if $entry->{n} > $latest;
        }
    }
    for my $row (@{ $of{ledger} }) {
        $blame->('lost', "event $row->[0], no. $row->[2] of $row->[1]") unless $id{ $row->[0] };
    }
    my %rolled_back = map { $_ => 1 } @{ $of{rolled_back} };
    for my $event_id (grep { $ledger{$_} } keys %rolled_back) {
        $blame->('ghosts', "event $event_id was rolled back and is in the ledger");
    }

    # What was emitted when the first n transactions of its session had been committed comes after all of them. One that
    # was prepared meanwhile and committed later may be on either side.
    for my $session (@{ $of{commits} }) {
        my @highest = ('0-0');    # ID of the first n transactions
        for my $commit (@$session) {
            my ($n, @events) = @$commit;
            my $last = $highest[$n];
            for my $event_id (@events) {
                my $id = $id{$event_id} or next;
                $blame->('id_order', "event $event_id at $id was emitted after $last was committed or emitted")
                    if Demo::Reader::above($id, $last) <= 0;
                $last = $id;
            }
            $last = $highest[-1] if Demo::Reader::above($highest[-1], $last) > 0;
            push @highest, $last;
        }
    }

    # a reader sees each event once, at the ID that it still has
    my %seen;
    my %stored = map { $_->{id} => 1 } @{ $of{entries} };
    for my $entry (@{ $of{seen} }) {
        my $event_id = $entry->{event_id};
        my $what = "event $event_id was read at $entry->{id}";
        if (!$ledger{$event_id}) {
            $blame->('ghosts', "$what, and is gone") unless $stored{ $entry->{id} };
            next;
        }
        $blame->('duplicated', "$what and at $seen{$event_id}") if $seen{$event_id};
        $seen{$event_id} = $entry->{id};
        $blame->('id_order', "$what and is at $id{$event_id}") if $id{$event_id} && $id{$event_id} ne $entry->{id};
    }
    for my $event_id (grep { $id{$_} && !$seen{$_} } keys %ledger) {
        $blame->('lost', "event $event_id at $id{$event_id} was never read");
    }
    # the service: each event once, and those of a wallet in a topic in their order
    my (%handled, %latest_handled);
    for my $line (@{ $of{statement} }) {
        my ($event_id, $topic, $wallet, $n) = @$line;
        my $what = "event $event_id, no. $n of $wallet";
        $blame->('handled_twice', $what) if $handled{$event_id}++;
        $blame->('ghosts', "$what was handled") unless $ledger{$event_id};
        my $latest = $latest_handled{"$topic $wallet"} // 0;
        $blame->('handled_order', "$what, after $latest") if $n < $latest;
        $latest_handled{"$topic $wallet"} = $n if $n > $latest;
    }
    for my $row (@{ $of{ledger} }) {
        $blame->('unhandled', "event $row->[0], no. $row->[2] of $row->[1]") unless $handled{ $row->[0] };
    }

    $count{bad} = 0;
    $count{bad} += $count{$_} for qw(lost duplicated ghosts wallet_order id_order unhandled handled_twice handled_order);
    $count{details} = \@details;
    return \%count;
}

# the value below which that part of the samples is
sub percentile {
    my ($part, @samples) = @_;
    return 0 unless @samples;
    my @sorted = sort { $a <=> $b } @samples;
    my $rank = int($part * @sorted + 0.999999);
    return $sorted[ $rank > 0 ? $rank - 1 : 0 ];
}

1;
