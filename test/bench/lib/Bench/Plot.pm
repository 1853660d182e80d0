# Pictures by gnuplot.
package Bench::Plot;
use strict;
use warnings;
1;
