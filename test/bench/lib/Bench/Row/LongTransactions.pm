# The drain of a backlog and the way from COMMIT to the reader while others leave transactions open: one that has written, and a
# hundred that hold a transaction id each. Next to it the same without them.
package Bench::Row::LongTransactions;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Backlog;
use Bench::Commits;

sub numbers { return 6 }
sub titles { return { 6 => 'While transactions are open' } }

my @cases = ([ none => 0 ], [ one => 1 ], [ hundred => 100 ]);

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $servers = $ctx->servers;
    Bench::Commits::prepare($ctx, $servers);
    # each comes first once in three runs
    for my $case (map { $cases[ ($run + $_) % @cases ] } 0 .. $#cases) {
        my ($name, $count) = @$case;
        my @open;
        my $drained = Bench::Backlog::drain($ctx, $servers, events => $ctx->events, transport => 'unix',
            before_load => sub { @open = open_transactions($servers, $count) });
        # nothing is left to be written of the backlog
        $servers->execute('CHECKPOINT');
        $ctx->say("$count open transactions: latency");
        my $latency = Bench::Commits::measure($ctx, $servers);
        $_->rollback for @open;
        $figures{"${name}_$_"} = $drained->{$_} for keys %$drained;
        $figures{"${name}_$_"} = $latency->{$_} for qw(p50_us p99_us);
    }
    $servers->stop;
    return \%figures;
}

# Each has written a row and emitted an event, and does nothing more.
sub open_transactions {
    my ($servers, $count) = @_;
    my @open;
    for (1 .. $count) {
        my $connection = $servers->connect;
        $connection->begin_work;
        $connection->do("INSERT INTO bench.invoice (number, customer, amount) VALUES (0, 'open', 1)");
        $connection->do("SELECT outbox.emit('billing.invoice.open', '{}')");
        push @open, $connection;
    }
    return @open;
}

sub lines {
    my @lines;
    for ([ one => 'one open transaction' ], [ hundred => 'a hundred open transactions' ]) {
        my ($name, $what) = @$_;
        push @lines,
            { what => "$what: drain", figure => "${name}_rate", reference => 'none_rate', unit => 'events/s', at_least => 0.95 },
            { what => "$what: latency, median", figure => "${name}_p50_us", reference => 'none_p50_us', unit => 'ms', scale => 1 / 1000, at_most => 1.1 },
            { what => "$what: latency, 99 of 100", figure => "${name}_p99_us", reference => 'none_p99_us', unit => 'ms', scale => 1 / 1000, at_most => 1.1 };
    }
    return map { { reference_is => 'without', %$_ } } @lines;
}

sub notes {
    return { 6 => <<'END' };
Rows 1 and 2 on a unix socket, three times: without open transactions, with one, and with a hundred that have each written a row and
emitted an event before the first event of the backlog, and stay open until all is measured.
END
}

1;
