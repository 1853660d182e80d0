# What some faults make so by nature, by the names of the checker's findings. There is no list with a loss, a ghost, a double entry
# or a second effect of a group with an inbox.
package Faults::Allowed;

use strict;
use warnings;
use Exporter qw(import);

our @EXPORT_OK = qw(%at_least_once %lease_lost %other_writer);

# A consumer that must ask Redis again, or whose place was taken, may do again what Redis has not heard of. Where an inbox
# keeps the effects this makes no difference, and there nothing is ever allowed.
our %at_least_once = (handled_again => 1);

# Handlers of what the group gave to somebody else meanwhile go on: nobody can stop them from outside.
our %lease_lost = (%at_least_once, overlap => 1);

# Order is not promised with another writer on a stream: what it has taken the place of comes later.
our %other_writer = (unordered => 1, reordered => 1, handled_order => 1);

1;
