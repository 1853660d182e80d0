# Measures the rows of the table, one after the other, and writes the report. scripts/bench has built what is needed into the
# first argument; servers run in the second; the third takes the figures. ROWS, RUNS, EVENTS, BIG, QUICK are in the environment.
use strict;
use warnings;
use FindBin;
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(sleep time);

use Bench::Context;
use Bench::Report;

my ($build, $work, $results) = @ARGV;
my $quick = $ENV{QUICK} ? 1 : 0;
STDOUT->autoflush;

sub all_rows {
    my @rows;
    for my $file (sort glob "$FindBin::Bin/lib/Bench/Row/*.pm") {
        my ($name) = $file =~ /(\w+)\.pm$/;
        require $file;
        push @rows, "Bench::Row::$name"->new;
    }
    return sort { ($a->numbers)[0] <=> ($b->numbers)[0] } @rows;
}

# Cores that others keep busy, over half a second, of which nothing is our own.
sub others {
    my @counts;
    for (0, 1) {
        sleep 0.5 if $_;
        my ($user, $nice, $system, $idle, $wait, @rest) = Bench::Context::slurp('/proc/stat') =~ /^cpu (.*)$/m ? split ' ', $1 : ();
        my ($irq, $softirq, $steal) = @rest;
        push @counts, [ $user + $nice + $system + $irq + $softirq + ($steal // 0), time ];
    }
    return ($counts[1][0] - $counts[0][0]) / POSIX::sysconf(POSIX::_SC_CLK_TCK()) / ($counts[1][1] - $counts[0][1]);
}

my @all = all_rows();
my %wanted = map { $_ => 1 } split ' ', $ENV{ROWS} // '';
my %known = map { $_ => 1 } map { $_->numbers } @all;
for my $number (sort keys %wanted) {
    die "there is no row $number: there are " . join(' ', sort { $a <=> $b } keys %known) . "\n" unless $known{$number};
}
my @rows = %wanted ? grep { grep { $wanted{$_} } $_->numbers } @all : @all;

my $ctx = Bench::Context->new(build => $build, work => $work, here => $FindBin::Bin, began => time, quick => $quick,
    runs => $ENV{RUNS} // ($quick ? 1 : 3), events => $ENV{EVENTS} // ($quick ? 20000 : 1000000),
    big => $quick ? 0 : $ENV{BIG} // (%wanted ? 0 : 1));
$SIG{PIPE} = 'IGNORE';
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub {
    $ctx->stop_servers;
    print "\ninterrupted\n";
    exit 130;
};

my $report = Bench::Report->new(dir => $results, rows => \@all, about => "$FindBin::Bin/about.md");
my $failed = 0;
for my $row (@rows) {
    my @numbers = $row->numbers;
    my $title = join ', ', map { "row $_" } @numbers;
    $report->forget($row);
    my $runs = $quick ? 1 : $row->runs($ctx);
    for my $run (0 .. $runs - 1) {
        printf "%s (%s), run %d of %d\n", $title, join('; ', map { $row->titles->{$_} } @numbers), $run + 1, $runs;
        my $busy = others();
        printf "  something else is running: it takes %.1f cores, and the figures will be worth little\n", $busy if $busy > 0.3;
        my $figures = eval { $row->measure($ctx, $run) };
        my $why = $@;
        eval { $ctx->stop_servers; 1 } or warn $@;
        if (!$figures) {
            print "  failed: $why";
            $failed++;
            next;
        }
        $report->add($row, $figures, events => $ctx->events, busy => sprintf('%.2f', $busy));
        printf "    %-40s %s\n", $_, Bench::Report::plain($figures->{$_}) for sort keys %$figures;
    }
    print $report->text($row);
}
$report->write;
print "$failed runs failed\n" if $failed;
exit($failed ? 1 : 0);
