// What goes before a frame's payload to whoever gets it: the virtio header and the link header, made of the copy that was decided
// on. On the queue thread of all ports.

import NetBackend

@safe struct FrameHead: ~Copyable {
  /// The longest virtio header, addresses, a tag, and the type behind it.
  static let capacity = 64

  // SAFETY: `capacity` bytes, alive with this.
  let bytes: UnsafeMutableRawPointer

  init() {
    unsafe bytes = .allocate(byteCount: Self.capacity, alignment: 16)
    unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0, count: Self.capacity)
  }

  deinit { unsafe bytes.deallocate() }

  /// Writes both headers; how many bytes they are. `buffers`: how many buffers the frame takes, where the layout counts them.
  @inline(__always)
  mutating func write(
    _ header: NetHeader, _ frame: borrowing Frame, layout: NetHeaderLayout, buffers: Int
  ) -> Int {
    var at = layout.byteCount
    // SAFETY (all of the body): at most 20 and 18 bytes, of the 64 there are; those past the fields stay zero.
    unsafe bytes.storeBytes(of: header.low.littleEndian, as: UInt64.self)
    unsafe bytes.storeBytes(of: header.checksumOffset.littleEndian, toByteOffset: 8, as: UInt16.self)
    if layout.countsBuffers {
      let count = UInt16(truncatingIfNeeded: buffers)
      unsafe bytes.storeBytes(of: count.littleEndian, toByteOffset: 10, as: UInt16.self)
    }
    unsafe bytes.storeBytes(of: frame.link.low.littleEndian, toByteOffset: at, as: UInt64.self)
    unsafe bytes.storeBytes(of: frame.link.high.littleEndian, toByteOffset: at &+ 8, as: UInt32.self)
    at &+= 12
    if frame.isTagged {
      let control = frame.priority | frame.network
      unsafe bytes.storeBytes(of: NetworkTag.type.littleEndian, toByteOffset: at, as: UInt16.self)
      unsafe bytes.storeBytes(of: control.bigEndian, toByteOffset: at &+ 2, as: UInt16.self)
      at &+= NetworkTag.byteCount
    }
    unsafe bytes.storeBytes(of: frame.link.type.littleEndian, toByteOffset: at, as: UInt16.self)
    return at &+ 2
  }
}
