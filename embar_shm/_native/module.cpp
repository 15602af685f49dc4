// embar_shm._core: the bindings of the native core. Each bind_*.cpp binds one header.
#include "bindings.hpp"

NB_MODULE(_core, m) {
    // What still exists when the interpreter has ended is no leak of ours: pyarrow, for example, then keeps the
    // buffers that its arrays are made of, and with them a batch.
    nanobind::set_leak_warnings(false);
    m.doc() = "Native core of embar-shm: ring, broker, publisher, subscriber. Use embar_shm, not this module.";
    embar::bind_segment(m);
    embar::bind_ring(m);
    embar::bind_broker(m);
    embar::bind_publisher(m);
    embar::bind_reservation(m);
    embar::bind_subscriber(m);
    embar::bind_network(m);
    embar::bind_feed(m);
    embar::bind_ceiling(m);
    embar::bind_yardsticks(m);
    embar::bind_verify(m);
    embar::bind_layout(m);
}
