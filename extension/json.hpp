// The little that is asked of JSON text: is it valid, is it a flat object.
#pragma once

namespace outbox {

// True when the text (in the server encoding) is a JSON object without an array or object inside. Raises nothing, so that a
// GUC's check hook may call it.
bool is_flat_object(const char *text);

} // namespace outbox
