# A PostgreSQL and a Redis of a row's own, with pinned settings, and the ways to work with them and to read what they cost.
# Everything that is compared with something runs on servers with the same settings.
package Bench::Servers;

use strict;
use warnings;
use DBI;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(clock_gettime sleep time CLOCK_MONOTONIC);

use Faults::Postgres;
use Faults::Wait qw(wait_until);
use OutboxTest::Redis;

my %pinned = (
    listen_addresses => '',
    shared_preload_libraries => 'outbox',
    shared_buffers => '1GB',
    max_wal_size => '16GB',
    checkpoint_timeout => '1h',
    fsync => 'on',
    synchronous_commit => 'on',
    wal_level => 'replica',
    autovacuum => 'on',
    jit => 'off',
    max_connections => 200,
    max_prepared_transactions => 10,
);

# dir => a folder of its own; bindir; template => an empty data directory;
# postgres => { setting => value }, over the pinned ones; redis => [ lines of redis.conf ]; aof => no | everysec | always;
# transport => unix | tcp: how the worker goes to Redis; extension => 0: without CREATE EXTENSION
sub new {
    my ($class, %options) = @_;
    my $self = bless { transport => 'unix', extension => 1, aof => 'no', %options }, $class;
    my $port = free_port();
    $self->{redis} = OutboxTest::Redis->new(dir => $self->{dir}, port => $port, start => 0, aof => $self->{aof}, timeout => 120,
        conf => [ 'io-threads 1', @{ $self->{redis} // [] } ]);
    return $self;
}

sub free_port {
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "no free port: $!\n";
    return $socket->sockport;
}

sub start {
    my ($self) = @_;
    system('cp', '-a', $self->{template}, "$self->{dir}/data") == 0 or die "could not copy $self->{template}\n";
    my %settings = (%pinned, 'outbox.redis_url' => $self->redis_url, %{ $self->{postgres} // {} });
    $self->{server} = Faults::Postgres->new(dir => $self->{dir}, bindir => $self->{bindir},
        conf => join '', map { "$_ = '$settings{$_}'\n" } sort keys %settings);
    $self->{redis}->start;
    $self->{server}->start;
    $self->execute('CREATE EXTENSION outbox') if $self->{extension};
    return $self;
}

sub stop {
    my ($self) = @_;
    return if $self->{stopped}++;
    delete $self->{connection};
    $self->{server}->stop_fast if $self->{server};
    $self->{redis}->stop;
    return;
}

# Redis empty and as after its start, so that no one works in memory that another has warmed.
sub restart_redis { my ($self) = @_; $self->{redis}->restart; return }

# The extension as if it had just been created: no events, no ticks, and Redis knows nothing. The worker goes there by that
# transport from now on.
sub reset_outbox {
    my ($self, %options) = @_;
    $self->{transport} = $options{transport} if $options{transport};
    $self->execute('DROP EXTENSION IF EXISTS outbox CASCADE');
    $self->restart_redis;
    $self->execute("ALTER SYSTEM SET outbox.redis_url = '" . $self->redis_url . "'");
    $self->execute('SELECT pg_reload_conf()');
    $self->execute('CREATE EXTENSION outbox');
    return;
}

# PostgreSQL

sub dir { $_[0]{dir} }
sub host { $_[0]{dir} }    # the folder of its unix socket
sub conninfo { my ($self) = @_; return "host=$self->{dir} dbname=postgres user=postgres" }
sub url { my ($self) = @_; return 'postgresql://postgres@/postgres?host=' . $self->{dir} }
sub postmaster_pid { $_[0]{server}{pid} }

# a connection more
sub connect { my ($self) = @_; return $self->{server}->connect // die "could not connect to PostgreSQL\n" }
sub connection { my ($self) = @_; return $self->{connection} //= $self->connect }

# statements without an answer
sub execute { my ($self, @scripts) = @_; $self->connection->do($_) for @scripts; return }
sub value { my ($self, $query, @values) = @_; return ($self->connection->selectrow_array($query, undef, @values))[0] }
sub rows { my ($self, $query, @values) = @_; return $self->connection->selectall_arrayref($query, { Slice => {} }, @values) }
sub row { my ($self, $query, @values) = @_; return $self->connection->selectrow_hashref($query, undef, @values) // {} }

# pgbench on a script: { tps, latency_ms, transactions, seconds }. clients => 1, threads, seconds => 10 or transactions => of
# each client, prepare => simple | extended | prepared, options => [ more ]
sub pgbench {
    my ($self, $script, %options) = @_;
    my $file = "$self->{dir}/pgbench.sql";
    open my $out, '>', $file or die "$file: $!\n";
    print $out $script;
    close $out or die "$file: $!\n";
    my $clients = $options{clients} // 1;
    my @command = ("$self->{bindir}/pgbench", '-n', '-h', $self->{dir}, '-U', 'postgres', '-f', $file, '-c', $clients,
        '-j', $options{threads} // ($clients < 2 ? 1 : 2), '-M', $options{prepare} // 'prepared',
        ($options{transactions} ? ('-t', $options{transactions}) : ('-T', $options{seconds} // 10)), @{ $options{options} // [] },
        'postgres');
    open my $in, '-|', @command or die "pgbench: $!\n";
    local $/;
    my $text = readline($in) // '';
    close $in or die "pgbench failed: $text\n";
    my ($tps) = $text =~ /^tps = ([0-9.]+)/m or die "pgbench said no tps: $text\n";
    my ($latency) = $text =~ /^latency average = ([0-9.]+)/m;
    my ($transactions) = $text =~ /^number of transactions actually processed: (\d+)/m;
    my ($failed) = $text =~ /^number of failed transactions: (\d+)/m;
    die "pgbench: $failed transactions failed\n" if $failed;
    return { tps => $tps, latency_ms => $latency, transactions => $transactions, seconds => $transactions / $tps };
}

# the outbox

sub worker_pid { my ($self) = @_; return $self->{server}->worker }

sub pause {
    my ($self) = @_;
    $self->execute('SELECT outbox.pause()');
    wait_until(sub { $self->value("SELECT state = 'paused' FROM outbox.worker_state()") }, 20, 'the sink is paused');
    return;
}

sub resume { my ($self) = @_; $self->execute('SELECT outbox.resume()'); return }

# Everything that is committed is published.
sub flush {
    my ($self, $seconds) = @_;
    $self->value('SELECT outbox.flush(make_interval(secs => ?))', $seconds // 600) or die "the sink is not done in time\n";
    return;
}

# Redis

sub redis_socket { $_[0]{redis}->socket }
sub redis_port { $_[0]{redis}->port }
sub redis_pid { $_[0]{redis}->pid }

sub redis_url {
    my ($self, $transport) = @_;
    return ($transport // $self->{transport}) eq 'tcp' ? $self->{redis}->tcp_url : $self->{redis}->url;
}

# one command, and its reply
sub redis { my ($self, @words) = @_; return $self->{redis}->cmd(@words) }

# Waits until the stream has so many entries, and tells when it had them (seconds of CLOCK_MONOTONIC). meanwhile => called each time. Looks fifty times a
# second, and more often when it is almost there: Redis has other things to do.
sub await_entries {
    my ($self, $stream, $count, %options) = @_;
    my $began = now();
    my ($seen, $seen_at) = (0, $began);
    while (1) {
        my $length = $self->redis('XLEN', $stream);
        my $at = now();
        die "$stream has $length entries instead of $count\n" if $length > $count;
        return $at if $length == $count;
        die "$stream has only $length entries of $count in time\n" if $at - $began > ($options{seconds} // 600);
        $options{meanwhile}->() if $options{meanwhile};
        my $rate = ($length - $seen) / ($at - $seen_at || 1);
        ($seen, $seen_at) = ($length, $at);
        my $left = $rate > 0 ? ($count - $length) / $rate : 1;
        sleep($left > 0.03 ? 0.02 : 0.002);
    }
}

# what it costs

sub now { return clock_gettime(CLOCK_MONOTONIC) }

# User and system time of a process with all its threads, in seconds: the clock that clock_getcpuclockid(3) names.
sub cpu_of {
    my (@pids) = @_;
    my $sum = 0;
    for my $pid (@pids) {
        next if ref $pid;    # called as a method, too
        my $seconds = clock_gettime((-$pid - 1) * 8 + 2);
        die "there is no process $pid\n" if $seconds < 0;
        $sum += $seconds;
    }
    return $sum;
}

# That of the client backends: those that are, and those that have ended, by the postmaster's account, which counts in
# hundredths of a second, and counts every child that has ended.
sub backend_cpu {
    my ($self) = @_;
    my @alive = map { $_->{pid} } @{ $self->rows(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()") };
    my $line = Bench::Context::slurp("/proc/" . $self->postmaster_pid . "/stat");
    my @fields = split ' ', $line =~ s/^.*\) //r;
    return ($fields[13] + $fields[14]) / POSIX::sysconf(POSIX::_SC_CLK_TCK()) + cpu_of(@alive);
}

# Of every process of PostgreSQL: those that are, and those that have ended, by the postmaster's account.
sub cpu {
    my ($self) = @_;
    my $postmaster = $self->postmaster_pid;
    my @fields = split ' ', Bench::Context::slurp("/proc/$postmaster/stat") =~ s/^.*\) //r;
    my $sum = ($fields[13] + $fields[14]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
    # one that ends right now is in the next account
    $sum += eval { cpu_of($_) } // 0 for $postmaster, split ' ', Bench::Context::slurp("/proc/$postmaster/task/$postmaster/children");
    return $sum;
}

# What it has in memory that is its own, in bytes: without what is shared.
sub rss_of {
    my ($pid) = grep { !ref } @_;
    my ($kilobytes) = Bench::Context::slurp("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m
        or die "there is no process $pid\n";
    return $kilobytes * 1024;
}

1;
