// Frames whose header and addresses are others once they have been read: what is sent is what was held against the rules.

import DeviceKit
import HostIO
import NetBackend
import TestSupport
import Testing
import VirtQueue

@Suite("frames that change once they are read", .enabled(if: Trap.isSupported, "needs an x86-64 processor"))
struct DoubleFetchTests {
  @Test("MM16: a frame is checked and sent by one look at its header and addresses", arguments: 1...6)
  func head(turn: Int) throws {
    let card = try Card(.loop) { $0.mac = MACAddress("52:54:00:00:00:01") }
    card.post(0, 2000)
    let at = Card.data(card.transmit)
    let payload = at + 4096
    let frame = testFrame(60, from: [0x52, 0x54, 0, 0, 0, 1])
    let head = [UInt8](repeating: 0, count: 12) + frame[..<14]
    card.transmit.pointer(at).copyMemory(from: head, byteCount: head.count)
    card.transmit.pointer(payload).copyMemory(from: Array(frame[14...]), byteCount: frame.count - 14)
    let page = UnsafeMutableRawBufferPointer(start: card.transmit.pointer(at), count: 4096)
    var looks = 0
    Trap.watch(
      [page],
      on: { body in
        _ = card.thread.attempt(
          SandboxAct("watch memory") {
            body()
            return 0
          })
      },
      after: { access in
        guard !access.isWrite else { return }
        looks += 1
        // Another kind of segmentation, checksums past the end, another sender.
        if looks == turn { for i in 0..<head.count { page[i] = 0x55 } }
      }
    ) {
      card.transmit.add([(at, head.count, false), (payload, frame.count - 14, false)])
      card.transmit.sendKick()
      #expect(card.transmit.waitUsed()?.length == 0)
    }
    #expect(looks >= 1)
    let refused = card.counter("badHeader") + card.counter("spoofed") + card.counter("malformed")
    if turn >= looks { #expect(refused == 0, "it was whole when it was read") }
    guard refused == 0 else { return }
    // A flag that was read before the rest changed would be no other: what arrives is the frame, from the guest's address.
    #expect(card.receive.waitUsed()?.length == 72)
    let received = card.received(0, 72)
    #expect(Array(received[..<12]) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    #expect(Array(received[18..<24]) == [0x52, 0x54, 0, 0, 0, 1])
    #expect(Array(received[26...]) == Array(frame[14...]))
  }
}
