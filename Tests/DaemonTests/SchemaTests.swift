// That share/config.schema.json says what `vhost-swiftd serve` takes: its keys are the options, each key works or is refused
// as the schema says.

import Foundation
import GuestHarness
import Testing

@Suite("The configuration's schema")
struct SchemaTests {
  private typealias Object = [String: Any]

  private func schema() throws -> Object {
    let path = Environment.repository + "/share/config.schema.json"
    let data = try Data(contentsOf: URL(fileURLWithPath: path))
    return try #require(try JSONSerialization.jsonObject(with: data) as? Object)
  }

  /// The long options in a help page, without those that belong to the process and not to a device.
  private func options(of device: String) throws -> Set<String> {
    let folder = try TemporaryFolder()
    let help = try Run([device, "--help"], in: folder).output
    let words = help.split { !($0.isLetter || $0.isNumber || $0 == "-") }
    let lines = help.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
    let heads = Set(
      lines.filter { $0.hasPrefix("--") || $0.hasPrefix("-h, --") }.compactMap { line in
        line.split { !($0.isLetter || $0.isNumber || $0 == "-") }.first { $0.hasPrefix("--") }
      })
    #expect(heads.isSubset(of: Set(words)) && heads.count > 5, "\(help)")
    return Set(heads.map { String($0.dropFirst(2)) }).subtracting([
      "help", "version", "stats", "drain-timeout", "sandbox", "user", "print-capabilities",
    ])
  }

  @Test("Its keys are the options of each device")
  func keys() throws {
    let definitions = try #require(try schema()["$defs"] as? [String: Object])
    let service = try #require(definitions["service"]?["properties"] as? Object)
    for (device, definition) in definitions where device != "service" {
      guard let own = definition["properties"] as? Object, own["device"] != nil else { continue }
      // A switch has sockets by port: what every device has is not its own.
      let common = definition["allOf"] == nil ? [] : Set(service.keys)
      let keys = Set(own.keys).union(common).subtracting(["device"])
      let options = try options(of: device)
      #expect(keys == options, "\(device): \(keys.symmetricDifference(options))")
    }
  }

  @Test(
    "a key that would be no option as an argument is refused by its name",
    arguments: ["", "-", "\u{301}serial", "a b"])
  func keys(key: String) throws {
    let folder = try TemporaryFolder()
    let disk: [String: Any] = [
      "device": "blk", "socket-path": folder.file("s"), "null-size": "1M", key: true,
    ]
    let file = folder.file("config.json")
    try JSONSerialization.data(withJSONObject: ["devices": [disk]]).write(to: URL(fileURLWithPath: file))
    try Run(["serve", "--config", file], in: folder).expectFailure(
      2, naming: ["devices[0]", "no option is called \"\(key)\""])
  }
}
