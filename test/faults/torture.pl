# Runs rounds of faults, several side by side, each in a process and a folder of its own. What scripts/torture has built is in
# the folder that is the argument; SEED, ROUNDS, FAULTS and JOBS are in the environment.
use strict;
use warnings;
use File::Path qw(make_path remove_tree);
use FindBin;
use JSON::PP ();
use POSIX qw(WNOHANG setpgid);
use Time::HiRes qw(sleep time);

use Faults::Postgres;
use Faults::Report;
use Faults::Round;
use Faults::Table;

use constant ROUND_LIMIT => 300;   # seconds: one that waits for everything as long as it may
use constant EVIDENCE => 20;       # rounds that are kept
use constant MORE => 5;            # rounds of a fault that has met nothing in all of its own

my @all = Faults::Table::all("$FindBin::Bin/crash_points");
if (!@ARGV) {
    printf "%-4s %-24s %s\n", @$_{qw(row name)}, $_->{group} // '' for @all;
    exit;
}
my ($build, $work, $results) = @ARGV;
my $seed = $ENV{SEED} // 1 + int rand 2**31;
my $jobs = $ENV{JOBS} // 2;
my @faults = Faults::Table::choose(\@all, $ENV{ROUNDS} // 10, split ' ', $ENV{FAULTS} || 'all');
my $bindir = "$build/pg/bin";
# a variant that is known to be wrong has done its duty when it was found out
my $until_failed = $ENV{UNTIL_FAILED};
binmode STDOUT, ':encoding(UTF-8)' if $ENV{TORTURE_UTF8};

my %running;    # pid of a round => { fault, seed, dir, until }
my $kept = 0;
$SIG{PIPE} = 'IGNORE';
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub {
    end_all();
    print "\ninterrupted\n";
    exit 130;
};

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!\n";
    local $/;
    return readline $file;
}

sub quietly {
    my ($log, @command) = @_;
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        open STDOUT, '>>', $log or POSIX::_exit(1);
        open STDERR, '>&', \*STDOUT;
        exec @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    die "@command failed:\n" . slurp($log) if $?;
    return;
}

# The data directory that every round begins with, and the topics of the load.
sub make_template {
    my $dir = "$work/template";
    make_path($dir);
    quietly("$work/initdb.log", "$bindir/initdb", '-D', "$dir/data",
        qw(-N -U postgres -A trust -E UTF8 --locale=C --wal-segsize=1));
    open my $conf, '>>', "$dir/data/postgresql.conf" or die "postgresql.conf: $!\n";
    print $conf <<"CONF";
listen_addresses = ''
shared_preload_libraries = 'outbox'
outbox.redis_url = 'unix:///nonexistent/redis.sock'
outbox.retry_min = '50ms'
outbox.retry_max = '500ms'
outbox.connect_timeout = '2s'
outbox.response_timeout = '2s'
outbox.lease_timeout = '2s'
max_prepared_transactions = 20
max_connections = 40
shared_buffers = '16MB'
max_wal_size = '1GB'
autovacuum_naptime = '5s'
CONF
    close $conf;
    my $server = Faults::Postgres->new(dir => $dir, bindir => $bindir)->start;
    $server->execute($_) for 'CREATE EXTENSION outbox', slurp("$FindBin::Bin/schema.sql"), slurp("$FindBin::Bin/burst.sql");
    # a third of the files: each is copied for every round, and synchronized after every crash
    $server->execute($_) for "UPDATE pg_database SET datistemplate = false", 'DROP DATABASE template0', 'DROP DATABASE template1';
    $server->stop_fast;
    my ($topics) = slurp("$FindBin::Bin/schema.sql") =~ /^-- topics: (.+)$/m or die "schema.sql does not name its topics\n";
    return ("$dir/data", [ split ' ', $topics ]);
}

# rounds

sub begin_round {
    my ($fault, $seed, $number, $template, $shim, $topics) = @_;
    my $dir = "$work/round.$number";
    make_path($dir);
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        setpgid(0, 0);
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        chdir $dir;
        open STDERR, '>', "$dir/harness.log";
        my $round = Faults::Round->new(dir => $dir, programs => "$build/bin", bindir => $bindir, template => $template,
            shim => $shim, topics => $topics, fault => $fault, seed => $seed);
        my $verdict = eval { $round->run };
        if (!$verdict) {
            my $why = $@;
            $round->note("the round ended: $why");
            $verdict = { verdict => 'invalid', why => [ "the round itself: $why" =~ s/\s+$//r ] };
            eval { $round->stop };
        }
        open my $out, '>', "$dir/verdict.new" or POSIX::_exit(1);
        print $out JSON::PP::encode_json($verdict);
        close $out or POSIX::_exit(1);
        rename "$dir/verdict.new", "$dir/verdict";
        POSIX::_exit(0);
    }
    setpgid($pid, $pid);
    $running{$pid} = { fault => $fault, seed => $seed, dir => $dir, until => time + ROUND_LIMIT };
    return;
}

# The process of a round is gone: whatever else lives in its folder goes, too.
sub end_round {
    my ($pid) = @_;
    my $round = delete $running{$pid};
    my ($fault, $dir) = @$round{qw(fault dir)};
    kill_in($dir);
    my $verdict = eval { JSON::PP::decode_json(slurp("$dir/verdict")) } // { verdict => 'invalid',
        why => [ $round->{late} ? 'the round took more than ' . ROUND_LIMIT . ' s' : 'the round ended without a verdict' ] };
    @$verdict{qw(fault row seed)} = (@$fault{qw(name row)}, $round->{seed});
    $verdict->{replay} = "make torture SEED=$round->{seed} FAULTS=$fault->{name} ROUNDS=1";
    if ($verdict->{verdict} =~ /failed|invalid/ && $kept++ < EVIDENCE || $ENV{KEEP}) {
        make_path("$results/evidence");
        my $place = "$results/evidence/$fault->{name}.$round->{seed}";
        remove_tree($place);
        # the results may be on another file system
        $verdict->{evidence} = $place if rename($dir, $place) || system('cp', '-a', $dir, $place) == 0;
    }
    remove_tree($dir);
    return $verdict;
}

# Every process that runs in that folder or below it was started by the round that it belongs to.
sub kill_in {
    my ($dir) = @_;
    for (1 .. 1000) {
        my @left = grep { (readlink("/proc/$_/cwd") // '') =~ /^\Q$dir\E(\/|$)/ } map { m{/(\d+)$} } glob '/proc/[0-9]*';
        return unless @left;
        kill 'KILL', @left;
        sleep 0.01;
    }
    return;
}

sub end_all {
    kill 'KILL', map { -$_ } keys %running;
    waitpid $_, 0 for keys %running;
    kill_in($work);
    return;
}

sub wait_for_round {
    while (1) {
        for my $pid (keys %running) {
            return $pid if waitpid($pid, WNOHANG) == $pid;
            next if time < $running{$pid}{until} || $running{$pid}{late}++;
            kill 'KILL', -$pid;
        }
        sleep 0.02;
    }
}

my $shim = "$work/shim.so";
quietly("$work/shim.log", qw(g++ -std=c++20 -O1 -shared -fPIC -o), $shim, "$FindBin::Bin/shim.cpp") if grep { $_->{shim} } @faults;
my ($template, $topics) = eval { make_template() };
if (!$template) {
    my $why = $@;
    kill_in($work);
    die $why;
}
# one round of each fault after the other, so that little time shows something of everything
my ($most) = sort { $b <=> $a } map { $_->{rounds} } @faults;
my @queue = map { my $n = $_; map { [ $_, ($seed + 7919 * $n) % 2**31 ] } grep { $n < $_->{rounds} } @faults } 0 .. $most - 1;
my $report = Faults::Report->new(file => "$results/rounds.jsonl", total => scalar @queue);
printf "%d rounds of %d faults, seed %d\n", scalar @queue, scalar @faults, $seed;
my ($number, %told, %more) = (0);
while (@queue || %running) {
    while (@queue && keys %running < $jobs) { begin_round(@{ shift @queue }, ++$number, $template, $shim, $topics) }
    $report->bar(map { $_->{fault}{name} } values %running);
    my $verdict = end_round(wait_for_round());
    $report->add($verdict);
    # Of a fault that has met nothing nothing is known. Whether one meets something is a matter of luck, also with the same seed.
    my $name = $verdict->{fault};
    $told{$name} = 1 if $verdict->{verdict} ne 'unknown';
    if (!$told{$name} && !grep({ $_->[0]{name} eq $name } @queue) && !grep({ $_->{fault}{name} eq $name } values %running)
        && ($more{$name} // 0) < MORE) {
        my ($fault) = grep { $_->{name} eq $name } @faults;
        push @queue, [ $fault, ($seed + 7919 * ($fault->{rounds} + $more{$name}++)) % 2**31 ];
        $report->expect(1);
    }
    if ($until_failed && $verdict->{verdict} eq 'failed') {
        end_all();
        last;
    }
}
exit($report->finish ? 0 : 1);
