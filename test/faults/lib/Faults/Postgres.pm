# A PostgreSQL of a round's own: a copy of the template's data directory, a unix socket, and the ways to take it down. The
# postmaster is our child and no daemon, so its pid is nobody else's until we have waited for it.
package Faults::Postgres;

use strict;
use warnings;
use DBI;
use JSON::PP ();
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep);

use Faults::Wait qw(wait_until);

use constant PATIENCE => 60;    # seconds: what takes longer hangs, however slow the machine is

# dir, bindir; environment => what the server is started with; conf => more lines for postgresql.conf. The folder "data" in dir
# is there already.
sub new {
    my ($class, %options) = @_;
    my $self = bless {%options}, $class;
    $self->{data} = "$self->{dir}/data";
    open my $file, '>>', "$self->{data}/postgresql.conf" or die "postgresql.conf: $!\n";
    print $file "unix_socket_directories = '$self->{dir}'\n", $self->{conf} // '';
    close $file or die "postgresql.conf: $!\n";
    return $self;
}

sub conninfo { my ($self) = @_; return "host=$self->{dir} dbname=postgres user=postgres" }

sub start {
    my ($self, %options) = @_;
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/postgres.log" or POSIX::_exit(1);
        open STDERR, '>&', \*STDOUT;
        %ENV = (%ENV, %{ $self->{environment} // {} });
        exec "$self->{bindir}/postgres", '-D', $self->{data} or POSIX::_exit(127);
    }
    $self->{pid} = $pid;
    $self->wait_ready unless exists $options{wait} && !$options{wait};
    return $self;
}

sub wait_ready {
    my ($self) = @_;
    my $connection;
    wait_until(sub {
        die "PostgreSQL ended at once\n" if waitpid($self->{pid}, WNOHANG) == $self->{pid};
        $connection = $self->connect;
    }, PATIENCE, 'PostgreSQL is ready');
    return $connection;
}

# undef while nobody may connect
sub connect {
    my ($self) = @_;
    return eval {
        DBI->connect("dbi:Pg:host=$self->{dir};dbname=postgres", 'postgres', '',
            { RaiseError => 1, PrintError => 0, AutoCommit => 1, pg_server_prepare => 0 });
    };
}

# the connection that is kept, if it still is one, or a new one
sub connection {
    my ($self) = @_;
    delete $self->{connection} if $self->{connection} && (eval { $self->{connection}->ping } // 0) <= 0;
    return $self->{connection} //= $self->connect;
}

# A statement on that connection, again on a new one when the server has crashed meanwhile, so only what may be done twice:
# rows as arrays.
sub rows {
    my ($self, $statement, @values) = @_;
    my $rows;
    wait_until(sub {
        $self->{connection} //= $self->connect // return 0;
        $rows = eval {
            my $query = $self->{connection}->prepare($statement);
            $query->execute(@values);
            $query->{NUM_OF_FIELDS} ? $query->fetchall_arrayref : [];
        };
        return 1 if $rows;
        my $why = $@;
        my $alive = eval { $self->{connection}->ping } // 0;
        die $why if $alive > 0;
        delete $self->{connection};
        return 0;
    }, PATIENCE, 'PostgreSQL answers');
    return $rows;
}

# several statements, without an answer
sub execute {
    my ($self, $script) = @_;
    my $connection = $self->connect // die "could not connect to PostgreSQL\n";
    $connection->do($script);
    $connection->disconnect;
    return;
}

sub value { my ($self, @query) = @_; my $rows = $self->rows(@query); return @$rows ? $rows->[0][0] : undef }

sub row {
    my ($self, $statement) = @_;
    my $json = $self->value("SELECT to_jsonb(r) FROM ($statement) r");
    return defined $json ? JSON::PP::decode_json($json) : {};
}

sub parent_of {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 0;
    my $line = readline($file) // return 0;
    return $line =~ /\) \S (\d+)/ ? $1 : 0;
}

sub state_of {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 'X';
    my $line = readline($file) // return 'X';
    return $line =~ /\) (\S)/ ? $1 : 'X';
}

sub is_child { my ($self, $pid) = @_; return parent_of($pid) == $self->{pid} }

sub children {
    my ($self) = @_;
    return grep { $self->is_child($_) } map { m{/(\d+)$} } glob '/proc/[0-9]*';
}

sub worker {
    my ($self) = @_;
    my $pid;
    wait_until(sub { $pid = $self->value('SELECT pid FROM outbox.worker_state() WHERE pid <> 0') }, PATIENCE, 'there is a worker');
    return $pid;
}

# Of a child of the server, that may be gone by now: whether it was there.
sub kill_child {
    my ($self, $signal, $pid) = @_;
    return $self->is_child($pid) && kill $signal, $pid;
}

# The postmaster and every child of it, at once; then nothing of it is left but the data directory. Pids are used again soon:
# a lock file that names a living process would keep the server from starting.
sub crash {
    my ($self) = @_;
    my $pid = delete $self->{pid};
    # or it would start new children meanwhile: it stands still only when the kernel says so
    kill 'STOP', $pid;
    wait_until(sub { state_of($pid) =~ /[TtZX]/ }, PATIENCE, 'the server stands still');
    my @children = grep { parent_of($_) == $pid } map { m{/(\d+)$} } glob '/proc/[0-9]*';
    kill 'KILL', $pid, @children;
    waitpid $pid, 0;
    wait_until(sub { !grep { is_alive($_) } @children }, PATIENCE, 'the killed server is gone');
    unlink "$self->{data}/postmaster.pid", glob "$self->{dir}/.s.PGSQL.*";
    $self->forget_connection;
    return;
}

# Whether it has given up by itself; then it can be started again.
sub has_ended {
    my ($self) = @_;
    return 0 unless waitpid($self->{pid}, WNOHANG) == $self->{pid};
    delete $self->{pid};
    $self->forget_connection;
    return 1;
}

# SIGQUIT: an immediate shutdown
sub stop_immediately {
    my ($self) = @_;
    my $pid = delete $self->{pid} // return;
    kill 'QUIT', $pid;
    wait_until(sub { waitpid($pid, WNOHANG) == $pid }, PATIENCE, 'PostgreSQL has shut down');
    $self->forget_connection;
    return;
}

# SIGINT: a clean shutdown
sub stop_fast {
    my ($self) = @_;
    $self->forget_connection;
    my $pid = delete $self->{pid} // return;
    kill 'INT', $pid;
    wait_until(sub { waitpid($pid, WNOHANG) == $pid }, PATIENCE, 'PostgreSQL has shut down');
    return;
}

sub forget_connection {
    my ($self) = @_;
    my $connection = delete $self->{connection} or return;
    $connection->{PrintError} = 0;
    eval { $connection->disconnect };
    return;
}

# A zombie is dead: its parent may be one that never waits for it.
sub is_alive { my ($pid) = @_; return state_of($pid) !~ /[ZX]/ }

1;
