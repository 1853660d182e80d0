# What is said of the rounds: a line of JSON each in a file, a bar on a terminal or a line each elsewhere, and a table at the end.
package Faults::Report;

use strict;
use warnings;
use JSON::PP ();

use Faults::Checker;

my %colour = $ENV{TORTURE_COLOUR} ? (passed => 32, failed => 31, unknown => 33, invalid => 31, dim => 2, bold => 1) : ();

sub paint { my ($colour, $text) = @_; return $colour{$colour} ? "\e[$colour{$colour}m$text\e[0m" : $text }

# file, total => how many rounds there will be
sub new {
    my ($class, %options) = @_;
    $| = 1;
    open my $file, '>>', $options{file} or die "$options{file}: $!\n";
    $file->autoflush(1);
    return bless { %options, out => $file, done => 0, began => time, fault => {}, order => [],
        count => { map { $_ => 0 } qw(passed failed unknown invalid) } }, $class;
}

sub add {
    my ($self, $round) = @_;
    print { $self->{out} } JSON::PP->new->canonical->encode($round), "\n";
    $self->{done}++;
    $self->{count}{ $round->{verdict} }++;
    push @{ $self->{order} }, $round->{fault} unless $self->{fault}{ $round->{fault} };
    push @{ $self->{fault}{ $round->{fault} } }, $round;
    $self->clear;
    if ($round->{verdict} ne 'passed' || !$ENV{TORTURE_TERMINAL}) {
        my $found = join ', ', map { "$_ $round->{findings}{$_}" } sort keys %{ $round->{findings} // {} };
        printf "%s  %-28s seed %-10d %5.1f s  %5d events%s\n", paint($round->{verdict}, sprintf '%-7s', $round->{verdict}),
            $round->{fault}, $round->{seed}, $round->{seconds} // 0, $round->{committed} // 0, $found ? "  $found" : '';
    }
    if ($round->{verdict} ne 'passed') {
        print "         $_\n" for @{ $round->{why} // [] }, @{ $round->{details} // [] };
    }
    if ($round->{verdict} =~ /failed|invalid/) {
        print "         evidence: $round->{evidence}\n" if $round->{evidence};
        print "         again:    $round->{replay}\n";
    }
    return;
}

# so many rounds more
sub expect { my ($self, $many) = @_; $self->{total} += $many; return }

sub clear { print "\r\e[K" if $ENV{TORTURE_TERMINAL}; return }

sub bar {
    my ($self, @running) = @_;
    return unless $ENV{TORTURE_TERMINAL};
    my $width = 24;
    my $full = int($width * $self->{done} / ($self->{total} || 1));
    my $spent = time - $self->{began};
    my $left = $self->{done} ? $spent / $self->{done} * ($self->{total} - $self->{done}) : 0;
    my ($on, $off) = $ENV{TORTURE_UTF8} ? ("\x{2588}", "\x{2591}") : ('#', '.');
    my $count = $self->{count};
    my $counts = join ', ', map { paint($_, "$count->{$_} $_") } grep { $count->{$_} } qw(passed failed unknown invalid);
    printf "\r\e[K%s %d of %d%s, %d:%02d left  %s", $on x $full . $off x ($width - $full), $self->{done}, $self->{total},
        $counts ? ": $counts" : '', int($left / 60), $left % 60, paint('dim', join ', ', @running);
    return;
}

sub median { my @sorted = sort { $a <=> $b } @_; return @sorted ? $sorted[ $#sorted / 2 ] : undef }

sub seconds { my ($value) = @_; return defined $value ? sprintf '%.2f', $value : '-' }

# Whether all is well: no round failed, and there is no fault of which no round says anything.
sub finish {
    my ($self) = @_;
    $self->clear;
    printf "\n%s\n", paint('bold', sprintf '%-28s %6s %6s %7s %6s %8s %9s %9s %11s %11s',
        'fault', 'rounds', 'passed', 'unknown', 'failed', 'events', 'in flight', 'again', 'recovered', 'at most');
    my $well = 1;
    for my $name (@{ $self->{order} }) {
        my @rounds = @{ $self->{fault}{$name} };
        my %count = map { $_ => 0 } qw(passed failed unknown invalid);
        $count{ $_->{verdict} }++ for @rounds;
        my @recovered = grep { defined } map { $_->{recovered} } @rounds;
        my ($events, $in_flight, $again) = (0, 0, 0);
        for my $round (@rounds) {
            $events += $round->{committed} // 0;
            $in_flight += $round->{in_flight} // 0;
            $again++ if ($round->{sent_again} // 0) + ($round->{taken_over} // 0);
        }
        my $bad = $count{failed} + $count{invalid};
        $well = 0 if $bad || !$count{passed};
        my ($most) = sort { $b <=> $a } @recovered;
        printf "%-28s %6d %6d %7d %s %8d %9d %8d%% %9s s %9s s\n", $name, scalar @rounds, $count{passed}, $count{unknown},
            paint($bad ? 'failed' : 'passed', sprintf '%6d', $bad), $events, $in_flight, 100 * $again / @rounds,
            seconds(median(@recovered)), seconds($most);
    }
    my ($events, %found) = (0);
    for my $round (map { @$_ } values %{ $self->{fault} }) {
        $events += $round->{committed} // 0;
        $found{$_} += $round->{findings}{$_} for keys %{ $round->{findings} // {} };
    }
    my @findings = map { sprintf '%d %s', $found{$_} // 0, $_ =~ tr/_/ /r } @Faults::Checker::findings;
    printf "\n%d events: %s\n", $events, join ', ', @findings;
    my $spent = time - $self->{began};
    printf "%d rounds in %d:%02d: %s\n", $self->{done}, int($spent / 60), $spent % 60,
        join ', ', map { "$self->{count}{$_} $_" } qw(passed unknown failed invalid);
    print "A round is unknown when its fault met nothing that could have broken; it counts for nothing.\n"
        if $self->{count}{unknown};
    return $well;
}

1;
