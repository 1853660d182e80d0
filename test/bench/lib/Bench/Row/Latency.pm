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

sub notes {
    return { 2 => <<'END' };
One connection commits a transaction each 5 ms: a business `INSERT` and the event. Another thread of the same process is blocked in
`XREAD`; the time is from the return of `COMMIT` to the return of `XREAD`, 4,000 times after 200 that do not count. Less than nothing is
possible: an entry may be there before its committer has read that it committed.

The reference is [`notify_relay.cpp`](src/notify_relay.cpp): the event is an `INSERT` into a table, with a `NOTIFY` in the same
transaction; a client that LISTENs selects what is not published, sends `XADD`s and marks the rows. Each step is prepared, and its marks
need not be durable. It has no safety: what it had sent and not marked when it died it sends again, and what commits out of order arrives
out of order.
END
}

sub bars {
    return { latency => [
        [ 'outbox, median', 'outbox_p50_us', 'ours' ], [ 'outbox, 99 of 100', 'outbox_p99_us', 'ours' ],
        [ 'LISTEN/NOTIFY, median', 'notify_p50_us', 'others' ], [ 'LISTEN/NOTIFY, 99 of 100', 'notify_p99_us', 'others' ],
    ] };
}

1;
