-- The business: wallets, and a ledger that has a row for each event that was emitted, written by the same transaction.
-- What is in the ledger when all is quiet was committed, and nothing else was.

CREATE EXTENSION outbox;

CREATE TABLE wallet (
    id text PRIMARY KEY,
    balance int NOT NULL DEFAULT 0 CHECK (balance >= 0),
    events int NOT NULL DEFAULT 0
);
CREATE TABLE ledger (
    event_id uuid PRIMARY KEY,
    wallet text NOT NULL,
    n int NOT NULL,
    amount int NOT NULL
);

-- What the consumers make of the events. It has no key: an event that was handled twice would be here twice.
CREATE TABLE statement (
    line bigserial,
    event_id uuid NOT NULL,
    topic text NOT NULL,
    wallet text NOT NULL,
    n int NOT NULL,
    amount int NOT NULL
);

-- The wallet's row is locked from here to the end of the transaction: so its events have an order, and n counts them.
CREATE FUNCTION book(wallet text, event_type text, amount int) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    state wallet;
    id uuid;
BEGIN
    SELECT * INTO STRICT state FROM wallet w WHERE w.id = wallet FOR UPDATE;
    state.events := state.events + 1;
    UPDATE wallet w SET balance = w.balance + amount, events = state.events WHERE w.id = wallet;
    id := outbox.emit(event_type, json_build_object('wallet', wallet, 'n', state.events, 'amount', amount),
                      aggregate_id => wallet, aggregate_type => 'wallet');
    INSERT INTO ledger VALUES (id, wallet, state.events, amount);
    RETURN id;
END
$$;

CREATE FUNCTION open_wallet(wallet text) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO wallet (id) VALUES (wallet);
    SELECT book(wallet, 'wallet.created', 0);
$$;

CREATE FUNCTION deposit(wallet text, amount int) RETURNS uuid LANGUAGE sql AS $$
    SELECT book(wallet, 'wallet.deposited', amount);
$$;

-- Three events in two streams. Both rows are locked in the order of their names, or two transfers could wait for each other.
CREATE FUNCTION transfer(payer text, payee text, amount int) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM wallet w WHERE w.id IN (payer, payee) ORDER BY w.id FOR UPDATE;
    RETURN NEXT book(payer, 'wallet.withdrawn', -amount);
    RETURN NEXT book(payee, 'wallet.deposited', amount);
    RETURN NEXT book(payer, 'transfer.done', amount);
END
$$;

-- many at once
CREATE FUNCTION open_wallets(prefix text, many int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO wallet (id, events) SELECT prefix || i, 1 FROM generate_series(1, many) i;
    INSERT INTO ledger
    SELECT outbox.emit('wallet.created', json_build_object('wallet', prefix || i, 'n', 1, 'amount', 0),
                       aggregate_id => prefix || i, aggregate_type => 'wallet'), prefix || i, 1, 0
      FROM generate_series(1, many) i;
$$;
