#pragma once

namespace outbox {

void define_log_mask(); // at load time

} // namespace outbox
