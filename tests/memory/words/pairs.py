"""What one user said in many languages, what they ask later, and questions that nothing they said answers."""

__all__ = ["PAIRS", "SMALL_TALK", "UNANSWERED"]

PAIRS: tuple[tuple[str, str], ...] = (
    # German
    ("Die Baustelle in der Lindenstraße ist gesperrt.", "Was war mit der Lindenstraße?"),
    ("Mein Zahnarzt Dr. Kern hat am Dienstag noch einen Termin frei.", "Wann ist mein Zahnarzttermin?"),
    ("Die Kfz-Versicherungsnummer lautet 88 41 207.", "Wie war nochmal die Nummer meiner Versicherung?"),
    ("Wir haben neue Fahrräder für die Kinder gekauft.", "Was habe ich über das Fahrrad erzählt?"),
    # English
    ("My daughter is allergic to peanuts, so no satay for her.", "What did I say about my daughter's allergies?"),
    ("The boat lies in Bergen until the engine is repaired.", "Where is my boat?"),
    ("We booked the Hotel Aurora in Lisbon for the conference.", "Which hotel did we book?"),
    ("Our locker at the swimming pool has the combination 4711.", "What's the combination of the locker?"),
    # French
    ("J'ai rendez-vous chez l'ophtalmologue mardi à quinze heures.", "C'est quand mon rendez-vous chez l'ophtalmo ?"),
    ("Le chat de ma voisine s'appelle Biscotte.", "Comment s'appelle le chat de la voisine ?"),
    ("L'appartement de Lyon coûte neuf cents euros par mois.", "Combien coûtait l'appartement à Lyon ?"),
    # Spanish
    ("El cumpleaños de mi hermana es el tres de octubre.", "¿Cuándo cumple años mi hermana?"),
    ("Tengo que renovar el pasaporte antes del viaje a Perú.", "¿Qué tenía que hacer con el pasaporte?"),
    ("La contraseña del wifi de la oficina es girasol azul.", "¿Cuál era la contraseña del wifi?"),
    # Portuguese
    ("O médico receitou um antibiótico por sete dias.", "O que o médico me receitou?"),
    ("Estacionei o carro no piso menos dois do centro comercial.", "Onde é que estacionei o carro?"),
    # Polish
    ("Umówiłem się z hydraulikiem na czwartek rano.", "Kiedy przychodzi hydraulik?"),
    ("Mój pies nazywa się Borys i boi się burzy.", "Czego boi się mój pies?"),
    ("Kod do domofonu to trzydzieści siedem klucz.", "Jaki jest kod do domofonu?"),
    # Russian
    ("Мы встречаемся с юристом в пятницу по поводу договора.", "Когда встреча с юристом о договоре?"),
    ("Собаку зовут Шарик, она боится грозы.", "Как зовут мою собаку?"),
    ("Ключи от дачи лежат у соседки Марины.", "Где ключи от дачи?"),
    # Turkish
    ("İstanbul'daki toplantı salı gününe ertelendi.", "istanbul toplantısı ne zaman?"),
    ("Kızımın fındığa alerjisi var.", "Kızımın neye alerjisi vardı?"),
    ("ISPARTA'dan gül reçeli getirdim.", "ısparta'dan ne getirmiştim?"),
    # Arabic
    ("قال مُحَمَّد إن الاجتماع في الرياض يوم الأحد.", "متى الاجتماع مع محمد؟"),
    ("سيارتي في الورشة لأن المحرك معطل.", "ما مشكلة السيارة؟"),
    ("ابنتي عندها حساسية من الفول السوداني.", "من ماذا تعاني ابنتي من حساسية؟"),
    # Persian
    ("می‌خواهم بلیط قطار مشهد را برای پنجشنبه بگیرم.", "میخواهم بدانم بلیط مشهد برای کی بود؟"),
    ("دخترم به بادام زمینی حساسیت دارد.", "دختر من به چه حساسیت دارد؟"),
    # Hebrew
    ("הכלבה שלי נקראת לולה והיא אוהבת גבינה.", "מה הכלבה שלי אוהבת?"),
    ("הפגישה עם רואה החשבון נדחתה ליום רביעי.", "מתי הפגישה עם רואה החשבון?"),
    # Hindi
    ("मेरी बेटी को मूँगफली से एलर्जी है।", "मेरी बेटी को किस चीज़ से एलर्जी है?"),
    ("दिल्ली वाली ट्रेन शुक्रवार को सुबह छह बजे है।", "दिल्ली की ट्रेन कब है?"),
    # Chinese
    ("用户服务器部署在腾讯云国内节点。", "腾讯云的迁移方案什么时候交?"),
    ("端到端测试已经通过了。", "端到端测试结果怎么样?"),
    ("我女儿对花生过敏,不能吃沙茶酱。", "我女儿对什么过敏?"),
    ("我的护照放在书房的抽屉里。", "护照在哪里?"),
    # Japanese
    ("来週の水曜日に歯医者の予約があります。", "歯医者の予約はいつでしたか?"),
    ("うちの猫の名前はタマで、魚が嫌いです。", "猫の名前は何ですか?"),
    ("大阪のホテルは駅前のグランドホテルを予約しました。", "大阪のホテルはどこを予約しましたか?"),
    # Korean
    ("제주도에서 렌터카를 예약했어요.", "제주도 렌터카는 어떻게 됐지?"),
    ("우리 딸은 땅콩 알레르기가 있습니다.", "딸이 무슨 알레르기가 있었지?"),
    ("치과 예약은 목요일 오후 세 시입니다.", "치과 예약이 언제였지?"),
    # Thai
    ("ลูกสาวของฉันแพ้ถั่วลิสง", "ลูกสาวของฉันแพ้อะไร"),
    ("รถของผมอยู่ที่อู่ซ่อมใกล้ตลาด", "รถผมอยู่อู่ซ่อมไหน"),
    # Vietnamese
    ("Con gái tôi bị dị ứng với đậu phộng.", "Con gái tôi dị ứng với cái gì?"),
    ("Tôi để hộ chiếu trong ngăn kéo bàn làm việc.", "Hộ chiếu của tôi ở đâu?"),
    # Greek
    ("Το διαμέρισμα στη Θεσσαλονίκη έχει δύο μπαλκόνια.", "Πόσα μπαλκόνια έχει το διαμέρισμα;"),
)

SMALL_TALK: tuple[str, ...] = (
    "Guten Morgen, wie geht es Ihnen heute?",
    "Das ist eine gute Frage, ich denke darüber nach.",
    "Hello, can you hear me?",
    "Thank you, that was very helpful.",
    "I would like to know what the weather will be tomorrow.",
    "Bonjour, est-ce que vous m'entendez bien ?",
    "Merci beaucoup, à bientôt.",
    "Buenos días, ¿me escuchas?",
    "Muchas gracias por tu ayuda.",
    "Bom dia, está a ouvir-me?",
    "Dzień dobry, czy mnie słychać?",
    "Здравствуйте, вы меня слышите?",
    "Спасибо, это всё на сегодня.",
    "Merhaba, beni duyabiliyor musun?",
    "مرحبا، هل تسمعني؟",
    "سلام، صدای من را می‌شنوی؟",
    "שלום, אתה שומע אותי?",
    "नमस्ते, क्या आप मुझे सुन सकते हैं?",
    "你好,你能听到我说话吗?",
    "谢谢,今天就到这里吧。",
    "こんにちは、聞こえますか?",
    "ありがとうございます、それで大丈夫です。",
    "안녕하세요, 제 말이 들리나요?",
    "สวัสดีครับ ได้ยินไหม",
    "Xin chào, bạn có nghe tôi nói không?",
    "Could you repeat that, please?",
    "Ich melde mich dann nächste Woche wieder.",
    "Let's talk about something else.",
)

UNANSWERED: tuple[str, ...] = (
    "Wie heißt die Hauptstadt von Australien?",
    "What is the passport number of my wife?",
    "Do you know what I said?",
    "Was war denn das?",
    "Quelle est la recette de la tarte aux pommes ?",
    "¿Cuánto pesa un elefante?",
    "Какая высота у Эвереста?",
    "Bugün dolar kaç lira?",
    "ما هي عاصمة اليابان؟",
    "北京的天气怎么样?",
    "富士山の高さはどのくらいですか?",
    "서울의 인구는 얼마나 되나요?",
    "Thời tiết Hà Nội thế nào?",
    "What time is it?",
    "Ile kosztuje bilet do kina?",
)
