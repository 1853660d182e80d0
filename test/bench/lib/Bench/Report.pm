# Keeps the figures of every run as lines of JSON, and makes RESULTS.md of all that are there: medians with their spread, each
# beside its reference of the same runs, and whether the goal is met.
package Bench::Report;

use strict;
use warnings;
use JSON::PP ();
use POSIX qw(strftime);

use Bench::Plot;

my @pictures = (
    { name => 'drain', title => 'Drain of committed events', unit => 'events a second', scale => 1, fastest => 1 },
    { name => 'latency', title => 'From COMMIT to a blocked XREAD, 200 events a second', unit => 'milliseconds, logarithmic',
        scale => 1 / 1000, logarithmic => 1, format => '%g' },
);

# dir => where figures.jsonl is; rows => every row that there is
sub new {
    my ($class, %options) = @_;
    my $self = bless {%options, figures => []}, $class;
    if (open my $file, '<', "$self->{dir}/figures.jsonl") {
        push @{ $self->{figures} }, map { JSON::PP::decode_json($_) } readline $file;
    }
    return $self;
}

sub key { my ($row) = @_; return ref($row) =~ s/^.*:://r }

# What was measured of it before.
sub forget {
    my ($self, $row) = @_;
    @{ $self->{figures} } = grep { $_->{row} ne key($row) } @{ $self->{figures} };
    return;
}

sub add {
    my ($self, $row, $figures, %about) = @_;
    push @{ $self->{figures} }, { row => key($row), figures => $figures, at => strftime('%Y-%m-%d %H:%M', gmtime),
        version => $ENV{BENCH_VERSION} // '', %about };
    $self->save;
    return;
}

sub save {
    my ($self) = @_;
    my $path = "$self->{dir}/figures.jsonl";
    my $json = JSON::PP->new->canonical;
    open my $file, '>', "$path.new" or die "$path: $!\n";
    print $file $json->encode($_), "\n" for @{ $self->{figures} };
    close $file or die "$path: $!\n";
    rename "$path.new", $path or die "$path: $!\n";
    return;
}

sub runs_of { my ($self, $row) = @_; return grep { $_->{row} eq key($row) } @{ $self->{figures} } }

# numbers

sub median {
    my @sorted = sort { $a <=> $b } @_;
    return undef unless @sorted;
    my $middle = int(@sorted / 2);
    return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# { median, min, max, count } of a figure, or of its ratio to another in the same run; undef when no run has it
sub spread {
    my ($self, $row, $name, $reference) = @_;
    my @values;
    for my $run ($self->runs_of($row)) {
        my $figures = $run->{figures};
        next unless defined $figures->{$name};
        if (!defined $reference) { push @values, $figures->{$name} }
        elsif ($figures->{$reference}) { push @values, $figures->{$name} / $figures->{$reference} }
    }
    return undef unless @values;
    my @sorted = sort { $a <=> $b } @values;
    return { median => median(@values), min => $sorted[0], max => $sorted[-1], count => scalar @values };
}

# as few digits as say something: 1,234,567; 12.3; 0.123
sub plain {
    my ($number) = @_;
    return "$number" unless $number =~ /^-?[0-9.]+(e[-+]?\d+)?$/i;
    return '0' if $number == 0;
    my $size = abs $number;
    my $text = $size >= 100 ? sprintf('%.0f', $number) : $size >= 10 ? sprintf('%.1f', $number)
        : $size >= 0.1 ? sprintf('%.2f', $number) : sprintf('%.2g', $number);
    $text = sprintf '%d', $number if $number == int $number && $size < 100;
    1 while $text =~ s/^(-?\d+)(\d{3})/$1,$2/;
    return $text;
}

sub show {
    my ($spread, $scale) = @_;
    return '–' unless $spread;
    $scale //= 1;
    my ($median, $min, $max) = map { plain($_ * $scale) } @$spread{qw(median min max)};
    return $median if $spread->{count} == 1 || $min eq $max;
    return "$median ($min … $max)";
}

# A digit more: many goals are two digits below 1.
sub show_ratio {
    my ($spread) = @_;
    my ($median, $min, $max) = map { sprintf $_ < 1 ? '%.3f' : $_ < 10 ? '%.2f' : '%.0f', $_ } @$spread{qw(median min max)};
    return $spread->{count} == 1 || $min eq $max ? $median : "$median ($min … $max)";
}

# What is to be said of a line: { what, figure, reference, ratio, goal, met }
sub judge {
    my ($self, $row, $line) = @_;
    my $own = $self->spread($row, $line->{figure}) or return undef;
    my $reference = $line->{reference} ? $self->spread($row, $line->{reference}) : undef;
    my $ratio = $line->{reference} ? $self->spread($row, $line->{figure}, $line->{reference}) : undef;
    my $unit = $line->{unit} ? " $line->{unit}" : '';
    my $scale = $line->{scale} // 1;
    my $judged = $ratio ? $ratio->{median} : $own->{median} * $scale;
    my ($goal, $met) = ('', '');
    for ([ 'at_least', '≥', sub { $judged >= $_[0] } ], [ 'at_most', '≤', sub { $judged <= $_[0] } ]) {
        my ($name, $sign, $holds) = @$_;
        next unless defined $line->{$name};
        $goal = "$sign $line->{$name}" . ($ratio ? ' ×' : $unit);
        $met = $line->{reference} && !$ratio ? '' : $holds->($line->{$name}) ? 'yes' : '**no**';
    }
    return {
        what => $line->{what}, figure => show($own, $scale) . $unit,
        reference => $reference ? ($line->{reference_is} ? "$line->{reference_is}: " : '') . show($reference, $scale) : '',
        ratio => $ratio ? show_ratio($ratio) : '', goal => $goal, met => $met,
    };
}

my @columns = ([ what => '' ], [ figure => 'measured' ], [ reference => 'reference' ], [ ratio => 'ratio' ],
    [ goal => 'goal' ], [ met => 'met' ]);

sub lines_of {
    my ($self, $row, $number) = @_;
    return grep { defined } map { $self->judge($row, $_) }
        grep { !defined $number || ($_->{row} // ($row->numbers)[0]) == $number } $row->lines;
}

# for a terminal
sub text {
    my ($self, $row) = @_;
    my $text = '';
    for my $line ($self->lines_of($row)) {
        my $met = $line->{met} =~ s/\*//gr;
        $text .= sprintf "  %s: %s%s%s%s\n", $line->{what}, $line->{figure},
            $line->{reference} ne '' ? "; $line->{reference}; ratio $line->{ratio}" : '',
            $line->{goal} ne '' ? "; goal $line->{goal}" : '', $met ne '' ? "; met: $met" : '';
    }
    return $text;
}

sub table {
    my @lines = @_;
    my @used = grep { my $name = $_->[0]; grep { $_->{$name} ne '' } @lines } @columns;
    my $text = '| ' . join(' | ', map { $_->[1] } @used) . " |\n" . '|' . join('|', map { ' --- ' } @used) . "|\n";
    $text .= '| ' . join(' | ', map { $_ } @$_{ map { $_->[0] } @used }) . " |\n" for @lines;
    return $text;
}

# the machine

sub first_line { my ($command) = @_; my $line = `$command 2>/dev/null`; $line //= ''; $line =~ s/\n.*//s; return $line }

sub machine {
    my %cpu = `lscpu 2>/dev/null` =~ /^([^:\n]+):\s+(.+)$/mg;
    my ($memory) = (Bench::Context::slurp('/proc/meminfo') =~ /^MemTotal:\s+(\d+)/m);
    my ($system) = (Bench::Context::slurp('/etc/os-release') =~ /^PRETTY_NAME="?([^"\n]+)/m);
    my $processor = join ' ', grep { defined } $cpu{'Model name'} // 'unknown processor',
        $cpu{'Hypervisor vendor'} ? "(a virtual machine, $cpu{'Hypervisor vendor'})" : undef;
    my $redis = first_line('redis-server --version || valkey-server --version') =~ s/ sha=.*//r;
    my @versions = (first_line(($ENV{PG_CONFIG} // 'pg_config') . ' --version'), $redis, first_line('g++ --version'),
        'node ' . first_line('node --version'));
    return sprintf("- %s, %s cores, %.0f GB of memory; Linux %s; %s\n- %s\n", $processor, $cpu{'CPU(s)'} // '?', $memory / 1024 / 1024,
        (POSIX::uname())[2], $system // '', join '; ', grep { /\d/ } @versions);
}

# A picture for each thing that there are bars for; the Markdown that shows them.
sub draw {
    my ($self, @measured) = @_;
    my $text = '';
    for my $picture (@pictures) {
        my @bars;
        for my $row (@measured) {
            for my $bar (@{ $row->bars->{ $picture->{name} } // [] }) {
                my ($label, $name, $kind) = @$bar;
                my $spread = $self->spread($row, $name) or next;
                my $number = $spread->{median} * $picture->{scale};
                push @bars, [ $label, $number, $kind, plain($number) ];
            }
        }
        next unless @bars > 1;
        @bars = sort { $b->[1] <=> $a->[1] } @bars if $picture->{fastest};
        Bench::Plot::bars(%$picture, bars => \@bars, file => "$self->{dir}/$picture->{name}.svg");
        $text .= "![$picture->{title}: " . join(', ', map { "$_->[0] $_->[3]" } @bars) . "]($picture->{name}.svg)\n\n";
    }
    return $text;
}

sub write {
    my ($self) = @_;
    my @measured = grep { $self->runs_of($_) } @{ $self->{rows} };
    return unless @measured;
    my (%dates, %versions);
    for (@{ $self->{figures} }) { $dates{ substr $_->{at}, 0, 10 } = 1; $versions{ $_->{version} } = 1 }
    my @runs = sort { $a <=> $b } map { scalar $self->runs_of($_) } @measured;
    my $runs = $runs[0] == $runs[-1] ? $runs[0] : "$runs[0] to $runs[-1]";
    my $text = "# Measured\n\n"
        . "Everything here was measured by `make bench`: each figure beside its reference in the same run, on the same servers, one after\n"
        . "the other, with nothing else running. "
        . ($runs eq '1' ? "There was one run.\n\n"
            : "A figure is the median of $runs runs, with the least and the greatest in brackets, and a\n"
            . "ratio the median of the runs' ratios.\n\n")
        . machine() . '- outbox ' . join(', ', sort keys %versions) . ', measured ' . join(', ', sort keys %dates) . "\n\n"
        . Bench::Context::slurp("$self->{about}");
    my $disturbed = grep { ($_->{busy} // 0) > 0.3 } @{ $self->{figures} };
    $text .= "**Something else was running when $disturbed of the runs began.**\n\n" if $disturbed;
    my %sections;
    for my $row (@measured) {
        for my $number ($row->numbers) {
            my @lines = $self->lines_of($row, $number) or next;
            my $notes = $row->notes->{$number};
            my $section = "## $number. " . $row->titles->{$number} . "\n\n" . table(@lines) . "\n" . ($notes ? "$notes\n" : '');
            $sections{$number} = $section;
        }
    }
    $text .= $self->draw(@measured);
    $text .= $sections{$_} for sort { $a <=> $b } keys %sections;
    $text =~ s/\n+\z/\n/;
    open my $file, '>', "$self->{dir}/RESULTS.md" or die "RESULTS.md: $!\n";
    print $file $text;
    close $file or die "RESULTS.md: $!\n";
    return;
}

1;
