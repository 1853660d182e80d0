# What everybody has written down about a round, read for the checker.
package Faults::Evidence;

use strict;
use warnings;
use JSON::PP ();

use Faults::Checker;
use Faults::Tap;

# What the checker says of a round that has come to rest, if so many events are enough to say anything, and others may wait for so
# many seconds after the fault.
sub judge {
    my ($round, $enough, $limit) = @_;
    my ($dir, $postgres, $redis) = @$round{qw(dir postgres redis)};
    my $tapped = (delete $round->{tap})->stop;
    $round->blame("died: the tap ended with status $tapped") if $tapped;
    my $sink = $round->sink;
    my %state = map { $_ => $sink->{$_} } qw(state lag_events dead_letters held_streams);
    $state{unpublished} = $postgres->value("SELECT count(*) FROM outbox.event WHERE status <> 'published'");
    for my $key (@{ $round->{keys} }) {
        for my $name ($round->groups) {
            # as many as it was made to have
            $state{dlq}{"$key:dlq:$name"} = $redis->cmd('XLEN', "$key:dlq:$name") - ($round->{malformed}{$key} // 0);
            my $pending = eval { $redis->cmd('XPENDING', $key, $name) };
            $state{pending}{"$name in $key"} = $pending ? $pending->[0] : 0;
        }
    }
    my $ours = sub { return grep { !$round->{foreign}{"$_->{key} $_->{id}"} } @_ };
    my @entries = $ours->(map { entries($redis, $_) } @{ $round->{keys} });
    my @tap = $ours->(@{ Faults::Tap::read_file("$dir/tap") });
    my $journals = { map { $_ => read_journal("$dir/journal.$_") } $round->groups };
    my $verdict = Faults::Checker::check(
        history => [ map { read_json_lines($_) } grep { -e } "$dir/history", "$dir/history.bursts" ],
        truth => [ map { my %row; @row{qw(op event_id aggregate version digest)} = @$_; \%row }
            @{ $postgres->rows('SELECT op, event_id, aggregate, version, digest FROM torture.truth') } ],
        entries => \@entries,
        tap => \@tap,
        inboxes => ['inbox'],
        effects => [ map { { event_id => $_->[0], consumer => $_->[1] } }
            @{ $postgres->rows('SELECT event_id, consumer FROM torture.effect') } ],
        journals => $journals,
        deaths => $round->{deaths},
        state => \%state,
        wrong => $round->{wrong},
        fault => { enough => $enough, limit => $limit, %{ $round->{fault} }, %{ $round->{fault_state} } });
    # what had to be done twice shows that the fault met something
    $verdict->{sent_again} = ($sink->{duplicates_rejected} // 0) + ($sink->{healed} // 0);
    $verdict->{taken_over} = taken_over($journals);
    return $verdict;
}

# events that one process had begun and another one began again
sub taken_over {
    my ($journals) = @_;
    my $n = 0;
    for my $journal (values %$journals) {
        my %pids;
        $pids{ $_->{event_id} }{ $_->{pid} } = 1 for grep { $_->{what} eq 'start' } @$journal;
        $n += grep { keys %$_ > 1 } values %pids;
    }
    return $n;
}

# a stream as it is in the end
sub entries {
    my ($redis, $key) = @_;
    my ($from, @entries) = ('-');
    while (1) {
        my $page = $redis->cmd('XRANGE', $key, $from, '+', 'COUNT', 1000);
        push @entries, map { Faults::Tap::facts($key, @$_) } @$page;
        return @entries if @$page < 1000;
        $from = "($page->[-1][0]";
    }
}

sub read_json_lines {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!\n";
    return map { JSON::PP::decode_json($_) } grep { /\}$/ } readline $file;
}

sub read_journal {
    my ($path) = @_;
    open my $file, '<', $path or return [];
    my @lines;
    while (my $line = readline $file) {
        my %line;
        @line{qw(ns what event_id aggregate version pid attempt)} = split ' ', $line;
        push @lines, \%line if defined $line{attempt};
    }
    return \@lines;
}

1;
