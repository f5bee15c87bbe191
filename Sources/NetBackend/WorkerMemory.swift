// Memory that a worker works in, as an object of its own. Workers are generic, and optimised code of Swift 6.3 destroys the parts of
// a generic move-only value without running the value's own deinit: what they free there, they would leak.

/// Bytes that are released with this object. On the worker's thread.
@safe final class WorkerMemory {
  // SAFETY: as many bytes as were asked for, alive with this object.
  let bytes: UnsafeMutableRawPointer

  init(byteCount: Int) { unsafe bytes = .allocate(byteCount: byteCount, alignment: 64) }

  deinit { unsafe bytes.deallocate() }
}
