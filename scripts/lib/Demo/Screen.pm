# What is printed: two columns, left the transactions as they end, right the entries as they arrive, and between them the
# lines over the full width. A line is left open for a moment, so that what a transaction caused stands beside it.
package Demo::Screen;

use strict;
use warnings;
use Exporter qw(import);
use Text::Wrap ();

our @EXPORT = qw(chapter paragraph note alarm columns transaction entry close_line progress thousands table_row);

my $width = $ENV{DEMO_WIDTH} // 0;
$width = 80 if $width !~ /^\d+$/ || $width < 80;
$width = 120 if $width > 120;

# at 80 columns 38 and 39, at 120 columns 56 and 61
my $left = 38 + int(($width - 80) * 0.45);
my $right = $width - $left - 3;
my %colour = $ENV{DEMO_COLOUR}
    ? (dim => 2, bold => 1, green => 32, red => 31, yellow => 33, cyan => 36, alarm => '1;33')
    : ();
my ($bar, $rule) = $ENV{DEMO_UTF8} ? ("\x{2502}", "\x{2500}") : ('|', '-');
binmode STDOUT, ':encoding(UTF-8)' if $ENV{DEMO_UTF8};
$| = 1;

# 'left': a transaction stands on the line and its right half is free; 'progress': to be overwritten
my $open = '';

sub paint {
    my ($colour, $text) = @_;
    return $colour{$colour} ? "\e[$colour{$colour}m$text\e[0m" : $text;
}

sub thousands {
    my ($number) = @_;
    1 while $number =~ s/^(-?\d+)(\d{3})/$1,$2/;
    return $number;
}

sub close_line {
    print "\r\e[K" if $open eq 'progress';
    print "\n" if $open eq 'left';
    $open = '';
    return;
}

sub full_width {
    my ($colour, $title) = @_;
    close_line();
    print "\n", paint($colour, "$rule$rule $title " . $rule x ($width - length($title) - 4)), "\n";
    return;
}

sub chapter { my ($title) = @_; full_width('bold', $title); return }
sub alarm { my ($title) = @_; full_width('alarm', $title); return }

sub paragraph {
    my ($text) = @_;
    close_line();
    $text =~ s/\s+/ /g;
    $text =~ s/ $//;
    local $Text::Wrap::columns = $width > 100 ? 100 : $width;
    print Text::Wrap::wrap('', '', $text), "\n";
    return;
}

sub note {
    my ($text) = @_;
    close_line();
    $text =~ s/\s+/ /g;
    $text =~ s/ $//;
    local $Text::Wrap::columns = $width;
    print paint('cyan', Text::Wrap::wrap('  * ', '    ', $text)), "\n";
    return;
}

sub columns {
    my ($what, $arriving) = @_;
    close_line();
    print "\n", paint('dim', sprintf("%-${left}s %s %s", $what, $bar, $arriving)), "\n";
    return;
}

my %ends = (
    COMMIT => 'green',
    'COMMIT PREPARED' => 'green',
    ROLLBACK => 'red',
    'ROLLBACK PREPARED' => 'red',
    PREPARED => 'yellow',
    LOST => 'yellow',
);

sub transaction {
    my ($number, $text, $end) = @_;
    close_line();
    my $room = $left - 5 - length $end;
    $text = substr($text, 0, $room - 3) . '..' if length $text >= $room;
    printf '%s %s%s %s ', paint('dim', sprintf '%-4s', "#$number"), sprintf("%-${room}s", $text),
        paint($ends{$end}, $end), $bar;
    $open = 'left';
    return;
}

# id, type and wallet always; its number in the wallet, the amount and the time since COMMIT as far as there is room
sub entry {
    my ($id, $type, $wallet, $n, $amount, $seconds) = @_;
    print ' ' x $left, " $bar " if $open ne 'left';
    my $line = paint('cyan', sprintf '%-18s', $id) . sprintf ' %-16s %-3s', $type, $wallet;
    $line .= sprintf ' n=%-3d', $n if $right >= 45;
    $line .= sprintf ' %5s', $amount ? sprintf '%+d', $amount : '' if $right >= 51;
    $line .= paint('dim', sprintf ' %9s', $seconds < 1 ? sprintf '%.1f ms', $seconds * 1000 : sprintf '%.1f s', $seconds)
        if defined $seconds && $right >= 61;
    $line =~ s/\s+$//;
    print "$line\n";
    $open = '';
    return;
}

# overwritten in place on a terminal; elsewhere a report of twenty lines would be noise
sub progress {
    my ($text) = @_;
    return unless $ENV{DEMO_TERMINAL};
    print "\r\e[K    ", paint('dim', $text);
    $open = 'progress';
    return;
}

sub table_row {
    my ($name, $value, $remark, $good) = @_;
    close_line();
    my $colour = defined $good ? ($good ? 'green' : 'red') : 'bold';
    printf "  %-26s %s   %s\n", $name, paint($colour, sprintf '%9s', $value), paint('dim', $remark // '');
    return;
}

1;
