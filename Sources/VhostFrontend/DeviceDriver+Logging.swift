// A driver's migration: has the back-end log what it writes to guest memory, in the order that QEMU does it, with the rings
// running. Same thread as the driver's other calls.

extension DeviceDriver {
  /// SET_LOG_BASE, then LOG_ALL, then the log flag of each ring. From the return on every write is logged.
  public func startLogging(in bitmap: DirtyBitmap) throws(FrontendError) {
    try connection.setLogBase(bitmap.description, descriptor: bitmap.descriptor.raw)
    try setLogging(buffers: true, rings: true)
  }

  /// Another bitmap in place of the one before, which nobody marks from the return on.
  public func changeLog(to bitmap: DirtyBitmap) throws(FrontendError) {
    try connection.setLogBase(bitmap.description, descriptor: bitmap.descriptor.raw)
  }

  /// Switches logging of what the device writes into buffers, and of what the rings write. Nil: as it is.
  public func setLogging(buffers: Bool? = nil, rings: Bool? = nil) throws(FrontendError) {
    if let buffers {
      features = buffers ? features | VirtioBits.logAll : features & ~VirtioBits.logAll
      try connection.setFeatures(features, ack: true).accepted(.setFeatures)
    }
    guard let rings else { return }
    logsRings = rings
    for queue in queues {
      try connection.setVringAddr(queue.address(in: arena, logging: rings), ack: true).accepted(.setVringAddr)
    }
  }

  public func stopLogging() throws(FrontendError) { try setLogging(buffers: false, rings: false) }
}
