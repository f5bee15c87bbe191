// A whole virtio device: entropy for a guest (virtio 1.3 §5.4), from the kernel's own generator. It has one queue, no
// features and no configuration; each chain is a buffer to fill. Read it as the start of a device of your own.

import CLinux
import DeviceKit
import VirtQueue

/// virtio-rng: fills the guest's buffers with random bytes.
public final class EntropyDevice: VirtioDevice {
  public let identity = DeviceIdentity(id: 4, name: "rng", queueLimit: 1, counters: ["bytes"])
  public let features: FeatureSet = []
  public let supportsIOMMU = true

  public init() {}

  public func start(_ queue: consuming QueueStart) throws(DeviceError) {
    queue.run { EntropyWorker() }
  }
}

struct EntropyWorker: QueueWorker {
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      let written = fill(chain)
      q.count(0, UInt64(written))
      q.complete(chain, written: written)
    }
  }

  /// Random bytes into all of the chain; a piece that the kernel refuses ends what counts as written.
  private func fill(_ chain: borrowing Chain) -> UInt32 {
    chain.writable.fill { span in
      // SAFETY: fills exactly the span.
      unsafe span.withUnsafeMutableBytes { bytes in
        unsafe getrandom(bytes.baseAddress, bytes.count, 0) == bytes.count
      }
    }
  }
}
