# From COMMIT to a blocked XREAD, at 200 events a second; next to it a client that LISTENs, selects and XADDs, without any safety.
package Bench::Row::Latency;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Commits;

sub numbers { return 2 }
sub titles { return { 2 => 'From COMMIT to the reader' } }

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $servers = $ctx->servers;
    Bench::Commits::prepare($ctx, $servers);
    $ctx->say('outbox');
    my $own = Bench::Commits::measure($ctx, $servers);
    $figures{"outbox_$_"} = $own->{$_} for keys %$own;
    $ctx->say('LISTEN/NOTIFY');
    my $other = Bench::Commits::measure_relay($ctx, $servers);
    $figures{"notify_$_"} = $other->{$_} for keys %$other;
    $servers->stop;
    return \%figures;
}

sub lines {
    my @reference = (reference_is => 'LISTEN/NOTIFY', unit => 'ms', scale => 1 / 1000);
    return (
        { what => 'median', figure => 'outbox_p50_us', reference => 'notify_p50_us', @reference, at_most => 0.6 },
        { what => '99 of 100 are faster than', figure => 'outbox_p99_us', reference => 'notify_p99_us', @reference, at_most => 1 },
        { what => 'the slowest', figure => 'outbox_max_us', reference => 'notify_max_us', @reference },
        { what => 'median, by itself', figure => 'outbox_p50_us', unit => 'ms', scale => 1 / 1000, at_most => 0.3 },
        { what => 'the transaction itself, median', figure => 'outbox_transaction_p50_us', reference => 'notify_transaction_p50_us', @reference },
    );
}

1;
