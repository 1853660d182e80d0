# Waiting that ends: for a condition, looked at again and again, and the clock that everything of a round is told by.
package Faults::Wait;

use strict;
use warnings;
use Exporter qw(import);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

our @EXPORT_OK = qw(wait_until pause_until now_ns);

# the clock of histories, journals and the tap: nanoseconds
sub now_ns { return int(clock_gettime(CLOCK_MONOTONIC) * 1e9) }

# What $condition returns when it is true. When it is not in time: dies, saying what it waited for.
sub wait_until {
    my ($condition, $seconds, $what) = @_;
    my $until = clock_gettime(CLOCK_MONOTONIC) + $seconds;
    my $pause = 0.002;
    while (1) {
        my $value = $condition->();
        return $value if $value;
        die "timed out waiting until $what\n" if clock_gettime(CLOCK_MONOTONIC) > $until;
        sleep $pause;
        $pause *= 1.5 if $pause < 0.03;
    }
}

sub pause_until {
    my ($ns) = @_;
    my $left;
    sleep $left / 1e9 while ($left = $ns - now_ns()) > 0;
    return;
}

1;
