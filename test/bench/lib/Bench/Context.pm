# What a row is given to work with: where the programs are, how large the work is, and ways to start servers and programs.
package Bench::Context;

use strict;
use warnings;
use File::Path qw(make_path remove_tree);
use IO::Select;
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(time);

use Bench::Servers;

# build => what test/bench/build made; work => a folder for servers; here => test/bench; events, runs, quick, big
sub new {
    my ($class, %options) = @_;
    my $self = bless { number => 0, servers => [], running => {}, %options }, $class;
    return $self;
}

sub events { $_[0]{events} }    # of a backlog
sub runs { $_[0]{runs} }
sub quick { $_[0]{quick} }      # as little as shows that it works
sub big { $_[0]{big} }          # the backlog of ten times as many, too
sub here { $_[0]{here} }
sub peers { "$_[0]{build}/peers" }
sub bin { my ($self, $name) = @_; return "$self->{build}/bin/$name" }

# So many, or in a quick run so few.
sub size { my ($self, $full, $quick) = @_; return $self->{quick} ? $quick : $full }

# A PostgreSQL and a Redis that run, with the extension; see Bench::Servers for the options. The row stops them.
sub servers {
    my ($self, %options) = @_;
    my $dir = "$self->{work}/" . ++$self->{number};
    make_path($dir);
    my $servers = Bench::Servers->new(dir => $dir, bindir => "$self->{build}/pg/bin", template => $self->template, %options);
    push @{ $self->{servers} }, $servers;
    return $servers->start;
}

# The data directory that each server begins with.
sub template {
    my ($self) = @_;
    my $template = "$self->{work}/template";
    return $template if -d $template;
    $self->command([ "$self->{build}/pg/bin/initdb", '-D', "$template.new",
        qw(-N -U postgres -A trust -E UTF8 --locale=C) ], seconds => 60);
    rename "$template.new", $template or die "$template: $!\n";
    return $template;
}

# Also when a row has died.
sub stop_servers {
    my ($self) = @_;
    for my $pid (keys %{ $self->{running} }) { kill 'KILL', -$pid; waitpid $pid, 0; delete $self->{running}{$pid} }
    $_->stop for splice @{ $self->{servers} };
    remove_tree(grep { -d && /\/\d+$/ } glob "$self->{work}/*");
    return;
}

# progress, on one line of its own
sub say {
    my ($self, @words) = @_;
    printf "  %6.1f s  %s\n", time - $self->{began}, join ' ', @words;
    return;
}

# programs

# One of ours by its name, with its options: the line of JSON that it prints, as a hash.
sub program { my ($self, $name, @options) = @_; return $self->finish($self->begin($name, @options)) }

# A Node program of test/bench/peers.
sub node { my ($self, $script, @options) = @_; return $self->finish($self->begin_node($script, @options)) }

# The same, to be finished later: what finish() takes; "pid" in it.
sub begin { my ($self, $name, @options) = @_; return $self->spawn([ $self->bin($name), @options ]) }
sub begin_node { my ($self, $script, @options) = @_; return $self->spawn([ 'node', $self->peers . "/$script", @options ]) }

# any command, and what it prints
sub command {
    my ($self, $command, %options) = @_;
    my $running = $self->spawn($command);
    return $self->output($running, %options);
}

sub spawn {
    my ($self, $command) = @_;
    pipe my $reader, my $writer or die "pipe: $!\n";
    my $errors = "$self->{work}/stderr." . ++$self->{number};
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        POSIX::setpgid(0, 0);
        close $reader;
        chdir $self->{work};
        open STDIN, '<', '/dev/null';
        open STDOUT, '>&', $writer or POSIX::_exit(126);
        open STDERR, '>', $errors or POSIX::_exit(126);
        exec @$command or POSIX::_exit(127);
    }
    POSIX::setpgid($pid, $pid);
    close $writer;
    $self->{running}{$pid} = 1;
    return { pid => $pid, out => $reader, errors => $errors, command => $command };
}

# Waits for its end. Dies with what it said when it fails, or takes longer than the seconds (600).
sub output {
    my ($self, $running, %options) = @_;
    my $until = time + ($options{seconds} // 600);
    my ($text, $select) = ('', IO::Select->new($running->{out}));
    while (1) {
        my $left = $until - time;
        if ($left <= 0) {
            kill 'KILL', -$running->{pid};
            waitpid $running->{pid}, 0;
            delete $self->{running}{ $running->{pid} };
            die "@{ $running->{command} }: not done in time\n";
        }
        next unless $select->can_read($left);
        my $got = sysread $running->{out}, $text, 65536, length $text;
        last unless $got;
    }
    waitpid $running->{pid}, 0;
    my $status = $?;
    delete $self->{running}{ $running->{pid} };
    my $errors = slurp($running->{errors});
    unlink $running->{errors};
    die "@{ $running->{command} }: status $status\n$text$errors" if $status;
    return $text;
}

# Tells it to end (SIGTERM) if a signal is named, and takes what it prints.
sub finish {
    my ($self, $running, %options) = @_;
    kill $options{signal}, $running->{pid} if $options{signal};
    my $text = $self->output($running, %options);
    my $result = eval { JSON::PP::decode_json((split /\n/, $text)[-1] // '') };
    die "@{ $running->{command} } printed no line of JSON:\n$text" unless ref $result eq 'HASH';
    return $result;
}

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or return '';
    local $/;
    return readline($file) // '';
}

1;
