// Every setting of outbox.*, once.
#pragma once

namespace outbox::settings {

extern bool enabled;
extern char *redis_password_file;
extern char *sink_password_file;
extern char *headers;
extern int retention;         // seconds
extern int retention_size;    // kB; 0: no bound
extern int batch_size;        // events
extern int linger;            // ms
extern int poll_interval;     // ms
extern int retry_min;         // ms
extern int retry_max;         // ms
extern int max_attempts;      // attempts
extern int max_payload_size;  // bytes
extern int connect_timeout;   // ms
extern int response_timeout;  // ms
extern int lease_timeout;     // ms
extern int consumer_interval; // ms
extern int max_consumer_groups;
extern int max_workers;       // workers

void define();

const char *redis_url(); // with the password
const char *shown_redis_url();

// The headers set with outbox.headers as JSON text, or null where none are set.
const char *session_headers();

} // namespace outbox::settings
