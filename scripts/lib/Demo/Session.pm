# A database session whose transactions have a known end, also when the server goes away in the middle of one: then the
# ledger tells. A transaction is { end, prepared, events => [ids], undone => [ids], took, committed_at }.
package Demo::Session;

use strict;
use warnings;
use DBI;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

# name: nobody else's; it begins the names of this session's prepared transactions
sub new {
    my ($class, $dir, $name) = @_;
    my $self = bless { dir => $dir, name => $name, prepared => 0 }, $class;
    $self->connect;
    return $self;
}

# waits while the server is restarting
sub connect {
    my ($self) = @_;
    my $until = clock_gettime(CLOCK_MONOTONIC) + 30;
    while (1) {
        $self->{db} = eval {
            DBI->connect("dbi:Pg:dbname=postgres;host=$self->{dir}", '', '',
                { AutoCommit => 1, RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoInactiveDestroy => 1 });
        };
        return $self if $self->{db};
        die "cannot connect to PostgreSQL: $DBI::errstr\n" if clock_gettime(CLOCK_MONOTONIC) > $until;
        sleep 0.05;
    }
}

sub value { my ($self, $sql, @values) = @_; return scalar $self->{db}->selectrow_array($sql, undef, @values) }
sub row { my ($self, $sql) = @_; return $self->{db}->selectrow_hashref($sql) }
sub rows { my ($self, $sql) = @_; return $self->{db}->selectall_arrayref($sql) }

sub execute { my ($self, $sql) = @_; $self->{db}->do($sql); return }

# Statements that return the ids of the events they emit, SAVEPOINT and ROLLBACK TO; then COMMIT, ROLLBACK or PREPARE.
sub transaction {
    my ($self, $end, @statements) = @_;
    my %done = (end => 'LOST', events => [], undone => []);
    my $good = eval {
        $self->{db}->do('BEGIN');
        my $mark = 0;
        for my $sql (@statements) {
            if ($sql =~ /^SAVEPOINT/) {
                $mark = @{ $done{events} };
            } elsif ($sql =~ /^ROLLBACK TO/) {
                push @{ $done{undone} }, splice @{ $done{events} }, $mark;
            }
            if ($sql =~ /^SELECT/) {
                push @{ $done{events} }, grep { defined } @{ $self->{db}->selectcol_arrayref($sql) };
            } else {
                $self->{db}->do($sql);
            }
        }
        1;
    };
    if (!$good) {
        # refused by a constraint, or the connection is gone
        $end = 'ROLLBACK';
        $done{error} = $self->{db}->errstr;
        return \%done unless $self->{db}->ping;
    }
    if ($end eq 'PREPARE') {
        $done{prepared} = "$self->{name}-" . ++$self->{prepared};
        $end = "PREPARE TRANSACTION '$done{prepared}'";
    }
    return $self->finish(\%done, $end);
}

# The last statement of a transaction, or its second phase.
sub finish {
    my ($self, $done, $end) = @_;
    $end .= " '$done->{prepared}'" if $end =~ /PREPARED$/;
    my $before = clock_gettime(CLOCK_MONOTONIC);
    my $good = eval { $self->{db}->do($end); 1 };
    $done->{committed_at} = clock_gettime(CLOCK_MONOTONIC);
    $done->{took} = $done->{committed_at} - $before;
    $done->{end} = !$good ? 'LOST' : $end =~ /^PREPARE / ? 'PREPARED' : $end =~ /^([A-Z ]+?)(?: '|$)/ ? $1 : die $end;
    $done->{error} = $DBI::errstr unless $good;
    return $done;
}

# After a loss: connects again and finds out how the transaction ended. A server that restarts lets nobody in before the
# last of its old sessions has gone, so the answer is final.
sub settle {
    my ($self, $done) = @_;
    $self->connect;
    my $prepared = $done->{prepared}
        && $self->value('SELECT count(*) FROM pg_prepared_xacts WHERE gid = ?', $done->{prepared});
    my $there = @{ $done->{events} } && $self->value('SELECT count(*) FROM ledger WHERE event_id = ?', $done->{events}[0]);
    $done->{end} = $prepared ? 'PREPARED' : $there ? 'COMMIT' : 'ROLLBACK';
    return $done;
}

sub is_committed { my ($done) = @_; return $done->{end} =~ /^COMMIT/ }
sub is_rolled_back { my ($done) = @_; return $done->{end} =~ /^ROLLBACK/ }

1;
