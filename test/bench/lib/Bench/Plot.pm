# Pictures by gnuplot, for those who would rather look: horizontal bars, one below the other, each with its figure. Grey text and
# colours of middle lightness on nothing, so that they read on a light page and on a dark one.
package Bench::Plot;

use strict;
use warnings;

use constant { OURS => '#3b82c4', LIMIT => '#8c8c8c', OTHERS => '#d0803a', TEXT => '#808080' };

# file; title; unit: what the axis says; bars => [ [ label, number, kind, text ], ... ] from above, kind: ours | limit | others;
# logarithmic => 1
sub bars {
    my (%picture) = @_;
    my @bars = @{ $picture{bars} };
    my %colour = (ours => OURS, limit => LIMIT, others => OTHERS);
    my ($least, $most) = (sort { $a <=> $b } map { $_->[1] } @bars)[ 0, -1 ];
    my $from = $picture{logarithmic} ? 10**floor_log10($least * 0.9) : 0;
    # room for what is written behind the longest
    my $to = $picture{logarithmic} ? $most * ($most / $from)**0.25 : $most * 1.22;
    my $height = 111 + 28 * @bars;
    my $wide = 16 + 7.4 * (sort { $b <=> $a } map { length $_->[0] } @bars)[0];
    my @script = ("set terminal svg size 760,$height dynamic font 'Helvetica,13'",
        "set output '" . quoted($picture{file}) . "'",
        "set title '" . quoted($picture{title}) . "' tc rgb '" . TEXT . "' font 'Helvetica,15'",
        "set xlabel '" . quoted($picture{unit}) . "' tc rgb '" . TEXT . "'",
        "set border 1 lc rgb '" . TEXT . "'", "set tics nomirror tc rgb '" . TEXT . "'", 'unset key', 'unset ytics',
        "set grid x back lc rgb '" . TEXT . "' lw 0.4 dt 3",
        'set lmargin at screen ' . $wide / 760, 'set rmargin at screen 0.97',
        'set tmargin at screen ' . (1 - 46 / $height), 'set bmargin at screen ' . 65 / $height,
        ($picture{logarithmic} ? 'set logscale x' : ()), "set xrange [$from:$to]",
        'set yrange [' . (0.4 - @bars) . ':0.6]', 'set format x "' . ($picture{format} // '%.0s%c') . '"');
    for my $n (0 .. $#bars) {
        my ($label, $number, $kind, $text) = @{ $bars[$n] };
        my ($low, $high) = (-$n - 0.33, -$n + 0.33);
        push @script, 'set object rectangle from first ' . "$from,$low to first $number,$high fs solid noborder fc rgb '$colour{$kind}' front",
            "set label '" . quoted($label) . "' at graph 0,first -$n right offset -0.7,0 tc rgb '" . TEXT . "'",
            "set label '" . quoted($text) . "' at first $number,first -$n left offset 0.7,0 tc rgb '" . TEXT . "' front";
    }
    push @script, 'plot NaN';
    open my $gnuplot, '|-', 'gnuplot' or die "gnuplot: $!\n";
    print $gnuplot "$_\n" for @script;
    close $gnuplot or die "gnuplot failed\n";
    return;
}

sub quoted { my ($text) = @_; return $text =~ s/'/''/gr }

sub floor_log10 { my ($number) = @_; my $log = log($number) / log(10); return int($log) - ($log < int $log ? 1 : 0) }

1;
