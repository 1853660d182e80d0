# What the story is made of: transactions that are shown as they run, waiting for entries, and killing servers; and the notes
# that are taken meanwhile for the verdict.
package Demo::Stage;

use strict;
use warnings;
use Exporter qw(import);
use Redis;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

use Demo::Load;
use Demo::Reader;
use Demo::Screen;
use Demo::Service;
use Demo::Session;
use Demo::Verdict;

our @EXPORT = qw(
    set_stage open_wallets scenes leave_prepared end_prepared open_many time_deposits start_load catch_up wait_briefly
    kill_9 kill_redis start_redis stat_sink entries_in_redis
    start_service kill_consumer start_consumer lines_written catch_up_service statement
    entries_read entries_stored ledger commits rolled_back transactions commit_times
);

my @streams = ('outbox:{wallet}', 'outbox:{transfer}');
my @wallets = qw(ada ben eve ian kim lea);
my $pace = 0.11;    # seconds from one transaction to the next: to be read while it runs

my ($dir, $session, $reader, $load, $service);
my (@commits, @rolled_back, %committed_at, @took);
my $number = 0;
my $transactions = 0;
my $killed_at;

my $owner = $$;
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub { exit 130 };
END {
    my $status = $?;
    if ($$ == $owner) {
        close_line();
        $_->end for grep { $_ } $load, $service, $reader;
    }
    $? = $status;
}

sub now { return clock_gettime(CLOCK_MONOTONIC) }

sub set_stage {
    ($dir) = @_;
    $session = Demo::Session->new($dir, 'demo');
    open my $file, '<', __FILE__ =~ s/Stage\.pm$/wallets.sql/r or die "wallets.sql: $!\n";
    my $sql = do { local $/; readline $file };
    $session->execute($sql);
    $reader = Demo::Reader->new("$dir/redis.sock", @streams);
    return;
}

# waiting

my @pending;    # entries that wait a moment, because one with a lower ID may still come from another stream

sub is_shown { my ($entry) = @_; return $entry->{wallet} =~ /^[a-z]{3}$/ }

# Waits that long for entries, and prints those of the six wallets.
sub watch {
    my ($seconds) = @_;
    my $until = now() + $seconds;
    do {
        # while something waits, look again soon
        my $look = @pending ? now() + 0.01 : $until;
        my @new = $reader->next_entries($look < $until ? $look : $until);
        @pending = sort { Demo::Reader::above($a->{id}, $b->{id}) } @pending, grep { is_shown($_) } @new;
        my $ripe = 0;
        for my $i (0 .. $#pending) { $ripe = $i + 1 if $pending[$i]{at} < now() - 0.03 }
        show($_) for splice @pending, 0, $ripe;
        $load->drain if $load;
    } while now() < $until;
    return;
}

sub show {
    my ($entry) = @_;
    my $committed_at = $committed_at{ $entry->{event_id} };
    entry(@$entry{qw(id type wallet n amount)}, $committed_at ? $entry->{at} - $committed_at : undef);
    return;
}

# Three seconds at most and without a pause, until the value has reached what is wanted; what it has reached.
sub wait_briefly {
    my ($value, $wanted) = @_;
    my $until = now() + 3;
    my $reached = 0;
    $reached = $value->() while $reached < $wanted && now() < $until;
    return $reached;
}

# Until every event that is committed now is published and read.
sub catch_up {
    note('Not everything was published within 30 s.') unless $session->value("SELECT outbox.flush('30 s')");
    my $until = now() + 15;
    do { watch(0.05) } while @pending || (entries_read() < entries_in_redis() && now() < $until);
    return;
}

# transactions

# what one does: [ words, statement... ]
sub opened { my ($wallet) = @_; return [ "$wallet opened", "SELECT open_wallet('$wallet')" ] }
sub plus { my ($wallet, $amount) = @_; return [ "$wallet +$amount", "SELECT deposit('$wallet', $amount)" ] }
sub pays { my ($from, $to, $amount) = @_; return [ "$from to $to $amount", "SELECT transfer('$from', '$to', $amount)" ] }

sub undone {
    my ($words, @statements) = @{ $_[0] };
    return [ "($words)", 'SAVEPOINT s', @statements, 'ROLLBACK TO s' ];
}

# Runs it and takes notes; it began when so many of this session had been committed.
sub execute {
    my ($end, @steps) = @_;
    my $began = @commits;
    my $done = $session->transaction($end, map { @$_[ 1 .. $#$_ ] } @steps);
    $done->{began} = $began;
    ++$transactions;
    take_notes($done);
    return $done;
}

sub take_notes {
    my ($done) = @_;
    if (Demo::Session::is_committed($done)) {
        push @commits, [ $done->{began}, @{ $done->{events} } ];
        push @took, $done->{took};
        $committed_at{$_} = $done->{committed_at} for @{ $done->{events} };
        push @rolled_back, @{ $done->{undone} };
    } elsif (Demo::Session::is_rolled_back($done)) {
        push @rolled_back, @{ $done->{events} }, @{ $done->{undone} };
    }
    return;
}

# One line on the left, and a moment for what arrives.
sub run {
    my ($end, @steps) = @_;
    my $done = execute($end, @steps);
    $done->{number} = ++$number;
    my $words = join ', ', map { $_->[0] } @steps;
    $words .= ' refused' if $done->{end} eq 'ROLLBACK' && $end ne 'ROLLBACK' && $done->{error};
    print_end($done, $words);
    return $done;
}

sub print_end {
    my ($done, $words) = @_;
    transaction($done->{number}, $words, $done->{end});
    watch($pace);
    return unless $done->{end} eq 'LOST';
    $session->settle($done);
    take_notes($done);
    note(sprintf 'The connection was lost: PostgreSQL takes a killed process for a crash and restarts itself. It is back, %.1f s '
        . 'after the kill; #%d is known to have ended with %s.', now() - $killed_at, $done->{number}, $done->{end});
    return;
}

sub second_phase {
    my ($done, $end) = @_;
    $session->finish($done, $end);
    take_notes($done);
    print_end($done, 'second phase');
    return;
}

# scenes

my $turn = 0;
my %held;    # wallets that a prepared transaction has locked

sub next_wallet {
    do { ++$turn } while $held{ $wallets[ $turn % @wallets ] };
    return $wallets[ $turn % @wallets ];
}

sub leave_prepared {
    my ($wallet) = @_;
    $held{$wallet} = 1;
    return run('PREPARE', plus($wallet, 35));
}

sub end_prepared {
    my ($done, $wallet, $end) = @_;
    delete $held{$wallet};
    second_phase($done, $end // 'COMMIT PREPARED') if $done->{end} eq 'PREPARED';
    return;
}

sub two_phases {
    my ($end) = @_;
    my $wallet = next_wallet();
    my $done = leave_prepared($wallet);
    run('COMMIT', plus(next_wallet(), 20));
    end_prepared($done, $wallet, $end);
    return;
}

my @scenes = (
    sub { run('COMMIT', plus(next_wallet(), 40)) },
    sub { my $from = next_wallet(); run('COMMIT', pays($from, next_wallet(), 15)) },
    sub { run('ROLLBACK', plus(next_wallet(), 70)) },
    sub { my $wallet = next_wallet(); run('COMMIT', plus($wallet, 25), undone(plus(next_wallet(), 99))) },
    sub { two_phases('COMMIT PREPARED') },
    sub { run('COMMIT', plus(next_wallet(), 60)) },
    # more than there is: the constraint on the balance refuses it
    sub { my $from = next_wallet(); run('COMMIT', pays($from, next_wallet(), 9999)) },
    sub { my $wallet = next_wallet(); run('COMMIT', undone(plus($wallet, 50)), plus($wallet, 5)) },
    sub { two_phases('ROLLBACK PREPARED') },
    sub { my $from = next_wallet(); run('COMMIT', pays($from, next_wallet(), 10)) },
);
my $scene = 0;

sub scenes {
    my ($many) = @_;
    $scenes[ $scene++ % @scenes ]->() for 1 .. $many;
    return;
}

sub open_wallets {
    run('COMMIT', opened($_), plus($_, 100)) for @wallets;
    return;
}

# One transaction; its events are in the ledger, and not counted one by one.
sub open_many {
    my ($many) = @_;
    my $done = execute('COMMIT', [ '', "SELECT open_wallets('bulk-', $many)" ]);
    transaction(++$number, thousands($many) . ' wallets opened', $done->{end});
    close_line();
    return;
}

# One after the other; the latencies of these and of all before.
sub time_deposits {
    my ($many) = @_;
    execute('COMMIT', [ '', "SELECT open_wallets('timed-', 10)" ]);
    for my $i (1 .. $many) {
        execute('COMMIT', plus('timed-' . (1 + $i % 10), 1));
        watch(0.003);
        progress("$i of $many") if $i % 20 == 0;
    }
    watch(0.2);
    my %arrived_at = map { $_->{event_id} => $_->{at} } entries_read();
    return map { $arrived_at{$_} - $committed_at{$_} } grep { $arrived_at{$_} } keys %committed_at;
}

sub start_load {
    my ($sessions) = @_;
    $load = Demo::Load->new($dir, $session, $sessions);
    return $load;
}

# the service

sub start_service { my ($many) = @_; $service = Demo::Service->new($dir, $many); return }
sub kill_consumer { return $service->kill_one }
sub start_consumer { $service->start; return }
sub lines_written { return $session->value('SELECT count(*) FROM statement') }

# Until it has handled every event that is committed now; whether it has.
sub catch_up_service {
    my $committed = $session->value('SELECT count(*) FROM ledger');
    my $until = now() + 60;
    my $written;
    do {
        watch(0.1);
        $written = lines_written();
        progress(thousands($written) . ' of ' . thousands($committed) . ' events handled');
    } while $written < $committed && now() < $until;
    close_line();
    return $written >= $committed;
}

# servers

sub redis { return Redis->new(sock => "$dir/redis.sock") }
sub stat_sink { return $session->row('SELECT * FROM outbox.stat_sink') }

my $kept;
sub entries_in_redis {
    $kept //= redis();
    my $sum = 0;
    $sum += $kept->xlen($_) for @streams;
    return $sum;
}

# Between asking for a pid and killing it the process may be gone, and the pid be somebody else's.
sub kill_9 {
    my ($pid, $program) = @_;
    open my $file, '<', "/proc/$pid/comm" or die "process $pid has gone\n";
    die "process $pid is another program\n" unless readline($file) =~ $program;
    kill 'KILL', $pid or die "kill $pid: $!\n";
    $killed_at = now();
    return;
}

sub kill_redis {
    my ($with_data) = @_;
    undef $kept;
    open my $file, '<', "$dir/redis.pid" or die "redis.pid: $!\n";
    chomp(my $pid = readline $file);
    kill_9($pid, qr/redis|valkey/);
    unlink "$dir/redis.pid", "$dir/redis.sock";
    system('rm', '-rf', "$dir/appendonlydir") if $with_data;
    return $pid;
}

sub start_redis {
    chdir $dir;
    system($ENV{REDIS_SERVER}, "$dir/redis.conf") == 0 or die "could not start Redis\n";
    # PING is answered also while the data is being loaded
    my $until = now() + 30;
    until (eval { redis()->exists('a'); 1 }) {
        die "Redis does not come back: $@" if now() > $until;
        watch(0.02);
    }
    return;
}

# for the verdict

sub entries_read { return @{ $reader->{entries} } }
sub entries_stored { return Demo::Verdict::entries(redis(), @streams) }
sub statement { return $session->rows('SELECT event_id, topic, wallet, n FROM statement ORDER BY line') }
sub ledger { return $session->rows('SELECT event_id, wallet, n FROM ledger') }
sub commits { return \@commits }
sub rolled_back { return @rolled_back }
sub transactions { return $transactions + ($load ? $load->{transactions} : 0) }

# seconds of each COMMIT since the last call
sub commit_times { return splice @took }

1;
