<?php
// Peer: PHP's sodium and PDO: SELECT 500 rows, an UPDATE for each by a prepared statement, one transaction.
declare(strict_types=1);

const BATCH_ROWS = 500;

$url = parse_url(getenv('DATABASE_URL'));
$pdo = new PDO(
    sprintf('pgsql:host=%s;port=%d;dbname=%s', $url['host'], $url['port'], ltrim($url['path'], '/')),
    $url['user'],
    $url['pass'],
    [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION],
);
$old = sodium_hex2bin(getenv('KEY_V1'));
$new = sodium_hex2bin(getenv('KEY_V2'));

$select = $pdo->prepare('SELECT id, ciphertext FROM customers WHERE id > ? ORDER BY id LIMIT ' . BATCH_ROWS);
$update = $pdo->prepare('UPDATE customers SET ciphertext = ? WHERE id = ?');
$done = 0;
$last = 0;
$began = hrtime(true);
while (true) {
    $select->execute([$last]);
    $rows = $select->fetchAll(PDO::FETCH_NUM);
    if (!$rows) {
        break;
    }
    $pdo->beginTransaction();
    foreach ($rows as [$id, $value]) {
        $sealed = sodium_base642bin(substr($value, 3), SODIUM_BASE64_VARIANT_ORIGINAL);
        $plain = sodium_crypto_secretbox_open(
            substr($sealed, SODIUM_CRYPTO_SECRETBOX_NONCEBYTES),
            substr($sealed, 0, SODIUM_CRYPTO_SECRETBOX_NONCEBYTES),
            $old,
        );
        if ($plain === false) {
            throw new RuntimeException("the value of row $id does not open");
        }
        $nonce = random_bytes(SODIUM_CRYPTO_SECRETBOX_NONCEBYTES);
        $resealed = $nonce . sodium_crypto_secretbox($plain, $nonce, $new);
        $update->execute(['v2:' . sodium_bin2base64($resealed, SODIUM_BASE64_VARIANT_ORIGINAL), $id]);
    }
    $pdo->commit();
    $done += count($rows);
    $last = $rows[count($rows) - 1][0];
}
echo json_encode(['rows' => $done, 'seconds' => (hrtime(true) - $began) / 1e9]), "\n";
