-- sqlite
CREATE TABLE canaries (
	peer VARCHAR(255) NOT NULL,
	nonce BLOB,
	asked_at DOUBLE NOT NULL,
	since DOUBLE NOT NULL,
	returned_at DOUBLE,
	round_trip DOUBLE,
	answered_at DOUBLE NOT NULL,
	PRIMARY KEY (peer)
);
CREATE TABLE claims (
	place BLOB NOT NULL,
	relay VARCHAR(48) NOT NULL,
	kind VARCHAR(8) NOT NULL,
	PRIMARY KEY (place)
)
 WITHOUT ROWID;
CREATE TABLE deliveries (
	recipient BLOB NOT NULL,
	mail BLOB NOT NULL,
	copy VARCHAR(32),
	forget_at DOUBLE,
	PRIMARY KEY (recipient)
)
 WITHOUT ROWID;
CREATE INDEX ix_deliveries_forget_at ON deliveries (forget_at) WHERE forget_at IS NOT NULL;
CREATE INDEX ix_deliveries_mail ON deliveries (mail);
CREATE TABLE history (
	seconds INTEGER NOT NULL,
	at INTEGER NOT NULL,
	told TEXT NOT NULL,
	PRIMARY KEY (seconds, at)
);
CREATE TABLE history_boards (
	board VARCHAR(32) NOT NULL,
	changed DOUBLE NOT NULL,
	told TEXT NOT NULL,
	PRIMARY KEY (board)
);
CREATE TABLE issued_keys (
	number INTEGER NOT NULL,
	name BLOB NOT NULL,
	octets BLOB,
	issued_at DOUBLE NOT NULL,
	PRIMARY KEY (number),
	UNIQUE (name),
	UNIQUE (octets)
);
CREATE TABLE kme_trials (
	kme BLOB NOT NULL,
	described BLOB NOT NULL,
	found VARCHAR(16) NOT NULL,
	tried_at DOUBLE NOT NULL,
	PRIMARY KEY (kme)
);
CREATE TABLE opened_mails (
	mail BLOB NOT NULL,
	fingerprint BLOB NOT NULL,
	forget_at DOUBLE NOT NULL,
	PRIMARY KEY (mail)
)
 WITHOUT ROWID;
CREATE INDEX ix_opened_mails_forget_at ON opened_mails (forget_at);
CREATE TABLE quarantine (
	id VARCHAR(12) NOT NULL,
	mail BLOB NOT NULL,
	reason VARCHAR(32) NOT NULL,
	party TEXT NOT NULL,
	named TEXT NOT NULL,
	facts TEXT NOT NULL,
	arrived_at DOUBLE NOT NULL,
	arrivals INTEGER NOT NULL,
	size BIGINT NOT NULL,
	octets BIGINT NOT NULL,
	claimed_until DOUBLE,
	secret_id TEXT NOT NULL,
	sealed BLOB NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (mail)
);
CREATE INDEX quarantine_party ON quarantine (party, octets);
CREATE TABLE quarantine_recipients (
	id VARCHAR(12) NOT NULL,
	address TEXT NOT NULL,
	notify TEXT,
	orcpt TEXT,
	PRIMARY KEY (id, address)
);
CREATE TABLE rate_limits (
	name BLOB NOT NULL,
	kind VARCHAR(16) NOT NULL,
	until DOUBLE NOT NULL,
	changed DOUBLE NOT NULL,
	PRIMARY KEY (name)
);
CREATE INDEX ix_rate_limits_changed ON rate_limits (changed);
CREATE TABLE received_keys (
	place BLOB NOT NULL,
	kme_group TEXT NOT NULL,
	master_sae TEXT NOT NULL,
	key_id TEXT NOT NULL,
	secret_id TEXT,
	sealed BLOB,
	level TEXT,
	bound_to BLOB,
	stored_at DOUBLE NOT NULL,
	first_used_at DOUBLE,
	expires_at DOUBLE NOT NULL,
	destroyed_at DOUBLE,
	PRIMARY KEY (place)
);
CREATE INDEX received_keys_expiry ON received_keys (destroyed_at, expires_at);
CREATE TABLE relays (
	relay VARCHAR(48) NOT NULL,
	until DOUBLE NOT NULL,
	PRIMARY KEY (relay)
);
CREATE TABLE restore_check (
	one INTEGER NOT NULL,
	mark DOUBLE NOT NULL,
	trusted_from DOUBLE NOT NULL,
	past DOUBLE NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE sealed_copies (
	copy VARCHAR(32) NOT NULL,
	mail BLOB NOT NULL,
	facts TEXT NOT NULL,
	message BLOB NOT NULL,
	forget_at DOUBLE NOT NULL,
	PRIMARY KEY (copy)
);
CREATE INDEX ix_sealed_copies_mail ON sealed_copies (mail);
CREATE TABLE store_identity (
	one INTEGER NOT NULL,
	store_id TEXT NOT NULL,
	former_id TEXT NOT NULL,
	secret_id TEXT NOT NULL,
	doubt TEXT NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE store_schema (
	version INTEGER NOT NULL,
	PRIMARY KEY (version)
);
CREATE TABLE store_written (
	one INTEGER NOT NULL,
	number INTEGER NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE unanswered_keys (
	place BLOB NOT NULL,
	forget_at DOUBLE NOT NULL,
	PRIMARY KEY (place)
);
CREATE TABLE waiting_for_keys (
	mail BLOB NOT NULL,
	waited DOUBLE NOT NULL,
	last_seen DOUBLE NOT NULL,
	PRIMARY KEY (mail)
);

-- postgresql
CREATE TABLE canaries (
	peer VARCHAR(255) NOT NULL,
	nonce BYTEA,
	asked_at DOUBLE PRECISION NOT NULL,
	since DOUBLE PRECISION NOT NULL,
	returned_at DOUBLE PRECISION,
	round_trip DOUBLE PRECISION,
	answered_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (peer)
);
CREATE TABLE claims (
	place BYTEA NOT NULL,
	relay VARCHAR(48) NOT NULL,
	kind VARCHAR(8) NOT NULL,
	PRIMARY KEY (place)
);
CREATE TABLE deliveries (
	recipient BYTEA NOT NULL,
	mail BYTEA NOT NULL,
	copy VARCHAR(32),
	forget_at DOUBLE PRECISION,
	PRIMARY KEY (recipient)
);
CREATE INDEX ix_deliveries_forget_at ON deliveries (forget_at);
CREATE INDEX ix_deliveries_mail ON deliveries (mail);
CREATE TABLE history (
	seconds INTEGER NOT NULL,
	at INTEGER NOT NULL,
	told TEXT NOT NULL,
	PRIMARY KEY (seconds, at)
);
CREATE TABLE history_boards (
	board VARCHAR(32) NOT NULL,
	changed DOUBLE PRECISION NOT NULL,
	told TEXT NOT NULL,
	PRIMARY KEY (board)
);
CREATE TABLE issued_keys (
	number BIGSERIAL NOT NULL,
	name BYTEA NOT NULL,
	octets BYTEA,
	issued_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (number),
	UNIQUE (name),
	UNIQUE (octets)
);
CREATE TABLE kme_trials (
	kme BYTEA NOT NULL,
	described BYTEA NOT NULL,
	found VARCHAR(16) NOT NULL,
	tried_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (kme)
);
CREATE TABLE opened_mails (
	mail BYTEA NOT NULL,
	fingerprint BYTEA NOT NULL,
	forget_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (mail)
);
CREATE INDEX ix_opened_mails_forget_at ON opened_mails (forget_at);
CREATE TABLE quarantine (
	id VARCHAR(12) NOT NULL,
	mail BYTEA NOT NULL,
	reason VARCHAR(32) NOT NULL,
	party TEXT NOT NULL,
	named TEXT NOT NULL,
	facts TEXT NOT NULL,
	arrived_at DOUBLE PRECISION NOT NULL,
	arrivals INTEGER NOT NULL,
	size BIGINT NOT NULL,
	octets BIGINT NOT NULL,
	claimed_until DOUBLE PRECISION,
	secret_id TEXT NOT NULL,
	sealed BYTEA NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (mail)
);
CREATE INDEX quarantine_party ON quarantine (party, octets);
CREATE TABLE quarantine_recipients (
	id VARCHAR(12) NOT NULL,
	address TEXT NOT NULL,
	notify TEXT,
	orcpt TEXT,
	PRIMARY KEY (id, address)
);
CREATE TABLE rate_limits (
	name BYTEA NOT NULL,
	kind VARCHAR(16) NOT NULL,
	until DOUBLE PRECISION NOT NULL,
	changed DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (name)
);
CREATE INDEX ix_rate_limits_changed ON rate_limits (changed);
CREATE TABLE received_keys (
	place BYTEA NOT NULL,
	kme_group TEXT NOT NULL,
	master_sae TEXT NOT NULL,
	key_id TEXT NOT NULL,
	secret_id TEXT,
	sealed BYTEA,
	level TEXT,
	bound_to BYTEA,
	stored_at DOUBLE PRECISION NOT NULL,
	first_used_at DOUBLE PRECISION,
	expires_at DOUBLE PRECISION NOT NULL,
	destroyed_at DOUBLE PRECISION,
	PRIMARY KEY (place)
);
CREATE INDEX received_keys_expiry ON received_keys (destroyed_at, expires_at);
CREATE TABLE relays (
	relay VARCHAR(48) NOT NULL,
	until DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (relay)
);
CREATE TABLE restore_check (
	one INTEGER NOT NULL,
	mark DOUBLE PRECISION NOT NULL,
	trusted_from DOUBLE PRECISION NOT NULL,
	past DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE sealed_copies (
	copy VARCHAR(32) NOT NULL,
	mail BYTEA NOT NULL,
	facts TEXT NOT NULL,
	message BYTEA NOT NULL,
	forget_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (copy)
);
CREATE INDEX ix_sealed_copies_mail ON sealed_copies (mail);
CREATE TABLE store_identity (
	one INTEGER NOT NULL,
	store_id TEXT NOT NULL,
	former_id TEXT NOT NULL,
	secret_id TEXT NOT NULL,
	doubt TEXT NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE store_schema (
	version INTEGER NOT NULL,
	PRIMARY KEY (version)
);
CREATE TABLE store_written (
	one INTEGER NOT NULL,
	number INTEGER NOT NULL,
	PRIMARY KEY (one)
);
CREATE TABLE unanswered_keys (
	place BYTEA NOT NULL,
	forget_at DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (place)
);
CREATE TABLE waiting_for_keys (
	mail BYTEA NOT NULL,
	waited DOUBLE PRECISION NOT NULL,
	last_seen DOUBLE PRECISION NOT NULL,
	PRIMARY KEY (mail)
);
