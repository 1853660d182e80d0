# Sessions that work in the background, each in a process of its own, until they are stopped. They tell the parent through
# a pipe which events their transactions ended with, in that order.
package Demo::Load;

use strict;
use warnings;
use Demo::Session;
use POSIX ();
use Time::HiRes qw(sleep);

use constant WALLETS => 40;

sub new {
    my ($class, $dir, $session, $many) = @_;
    $session->execute("SELECT open_wallets('load-', ${\WALLETS})");
    my $self = bless { pids => [], readers => [], rest => [], commits => [ map { [] } 1 .. $many ], rolled_back => [],
        transactions => 0 }, $class;
    for my $number (1 .. $many) {
        pipe my $reader, my $writer or die "pipe: $!";
        my $pid = fork // die "fork: $!";
        if ($pid == 0) {
            close $reader;
            my $status = eval { work($dir, "load-$number", $writer); 0 } // 1;
            print STDERR $@ if $status;
            POSIX::_exit($status);
        }
        close $writer;
        $reader->blocking(0);
        push @{ $self->{pids} }, $pid;
        push @{ $self->{readers} }, $reader;
        push @{ $self->{rest} }, '';
    }
    return $self;
}

sub work {
    my ($dir, $name, $writer) = @_;
    my $stop = 0;
    local $SIG{USR1} = sub { $stop = 1 };
    local $SIG{INT} = 'IGNORE';
    local $SIG{TERM} = 'DEFAULT';
    my $parent = getppid;
    $writer->autoflush(1);
    srand $$;
    my $session = Demo::Session->new($dir, $name);
    while (!$stop && getppid == $parent) {
        my $wallet = "'load-" . (1 + int rand WALLETS) . "'";
        my $other = "'load-" . (1 + int rand WALLETS) . "'";
        my $deposit = "SELECT deposit($wallet, 10)";
        my $kind = rand 100;
        my $prepare = $kind >= 90;
        my $done = $session->transaction(
              $kind < 50 ? ('COMMIT', $deposit)
            : $kind < 65 ? ('COMMIT', "SELECT transfer($wallet, $other, 1)")
            : $kind < 75 ? ('ROLLBACK', $deposit)
            : $kind < 90 ? ('COMMIT', $deposit, 'SAVEPOINT s', $deposit, 'ROLLBACK TO s')
            : ('PREPARE', $deposit));
        while (1) {
            $session->settle($done) if $done->{end} eq 'LOST';
            last if $done->{end} ne 'PREPARED';
            $session->finish($done, $kind < 96 ? 'COMMIT PREPARED' : 'ROLLBACK PREPARED');
        }
        my $committed = Demo::Session::is_committed($done);
        print $writer join(' ', $committed ? 'c' : 'r', @{ $done->{events} }), "\n";
        print $writer join(' ', 'u', @{ $done->{undone} }), "\n" if $committed && @{ $done->{undone} };
        sleep 0.004;
    }
    return;
}

# what they have told so far; call it now and then, or the pipes fill
sub drain {
    my ($self) = @_;
    for my $i (0 .. $#{ $self->{readers} }) {
        while (sysread $self->{readers}[$i], my $text, 65536) { $self->{rest}[$i] .= $text }
        while ($self->{rest}[$i] =~ s/^(.*)\n//) {
            my ($end, @events) = split / /, $1;
            $self->{transactions}++ if $end ne 'u';
            if ($end eq 'c') { push @{ $self->{commits}[$i] }, [ scalar @{ $self->{commits}[$i] }, @events ] }
            else { push @{ $self->{rolled_back} }, @events }
        }
    }
    return;
}

# lets each finish its transaction
sub stop {
    my ($self) = @_;
    kill 'USR1', @{ $self->{pids} };
    $self->reap;
    return;
}

sub end {
    my ($self) = @_;
    kill 'KILL', @{ $self->{pids} };
    $self->reap;
    return;
}

sub reap {
    my ($self) = @_;
    for my $pid (splice @{ $self->{pids} }) {
        # its pipe may be full
        while (waitpid($pid, POSIX::WNOHANG()) == 0) { $self->drain; sleep 0.005 }
    }
    $self->drain;
    return;
}

1;
