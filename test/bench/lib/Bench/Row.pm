# What a row of the table is. A module of Bench/Row overrides what it needs; one may measure several rows at once.
package Bench::Row;

use strict;
use warnings;

sub new { my ($class) = @_; return bless {}, $class }

# the rows of the table that it measures
sub numbers { die ref($_[0]) . " has no number\n" }

# { number => its title }
sub titles { die ref($_[0]) . " has no title\n" }

# Measures once: { name of a figure => number }. What was not done completely is no figure: dies.
#
#   $ctx   Bench::Context
#   $run   0, 1, 2 …
sub measure { die ref($_[0]) . " measures nothing\n" }

# How often, when it is more than $ctx->runs.
sub runs { my ($self, $ctx) = @_; return $ctx->runs }

# What the report says of it, in order: hashes.
#
#   row         => the number of the row, when there are several
#   what        => "drain through a unix socket"
#   figure      => the name of what was measured
#   reference   => the name of what it is compared with in the same run; without one the figure stands for itself
#   reference_is => what that is, in words
#   unit        => "events/s", or a function of the number; with scale => 1e6 for figures in other units
#   at_least, at_most    => the goal: of the ratio to the reference, or of the figure when there is none
#   only_if     => leaves the line out when the figure is absent (of a part that is not always measured)
sub lines { return () }

# { number => text about how it was measured, in Markdown }
sub notes { return {} }

# What it adds to the pictures, of which there are "drain" (events a second) and "latency" (microseconds): { name of the picture =>
# [ [ label, figure, ours | limit | others ], ... ] }
sub bars { return {} }

1;
